// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// A guest without an operating system: it looks for virtio devices on PCI, or else at the places
// where VMMs have virtio-mmio, polls each of its queues, and prints a line for each device on the
// first serial port. "end" is the last line.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

enum { NETWORK = 1, DISK = 2, FOLDER = 26 };

// The most queues, or pairs of them, that are driven, as by a guest of so many processors.
enum { QUEUES = 4 };

// Ports and serial line.

static void outb(u16 port, u8 value) { asm volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static void outl(u16 port, u32 value) { asm volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static u32 inl(u16 port) {
    u32 value;
    asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static void print(const char *text) {
    for (; *text; text++) outb(0x3f8, *text);
}

static void print_number(u64 number) {
    char digits[21], *at = digits + 20;
    *at = 0;
    do *--at = '0' + number % 10;
    while (number /= 10);
    print(at);
}

static void __attribute__((noreturn)) end(void) {
    print("end\n");
    for (;;) asm volatile("cli; hlt");
}

static void __attribute__((noreturn)) fail(const char *what, u64 found) {
    print("fault: ");
    print(what);
    print(": ");
    print_number(found);
    print("\n");
    end();
}

// Memory.

void *memset(void *to, int value, u64 bytes) {
    for (u64 i = 0; i < bytes; i++) ((u8 *)to)[i] = value;
    return to;
}
void *memcpy(void *to, const void *from, u64 bytes) {
    for (u64 i = 0; i < bytes; i++) ((u8 *)to)[i] = ((const u8 *)from)[i];
    return to;
}
static int same(const void *a, const void *b, u64 bytes) {
    for (u64 i = 0; i < bytes; i++)
        if (((const u8 *)a)[i] != ((const u8 *)b)[i]) return 0;
    return 1;
}

// Memory that nobody has touched since the VMM made it begins here, and reads as zeroes. A VMM that
// offers rings of 32768 entries takes 1 MiB for each.
static u64 free_memory = 16 << 20;

static void *take(u64 bytes) {
    void *taken = (void *)free_memory;
    free_memory = (free_memory + bytes + 4095) & ~4095ul;
    return taken;
}

extern u64 pml4[512], pdpt[512];

// Maps the GiB around an address of a device.
static volatile u8 *map(u64 address) {
    u64 *entry = &pml4[address >> 39 & 511];
    if (!*entry) *entry = (u64)take(4096) | 3;
    entry = (u64 *)(*entry & ~4095ul) + (address >> 30 & 511);
    if (!*entry) {
        u64 *directory = take(4096);
        for (u64 i = 0; i < 512; i++) directory[i] = (address >> 30 << 30) + (i << 21) + 0x83;
        *entry = (u64)directory | 3;
    }
    asm volatile("mov %0, %%cr3" : : "r"(pml4) : "memory");
    return (volatile u8 *)address;
}

// A device, whatever carries it.

struct device {
    u32 kind;
    // Of PCI: the common structure; that for notifications, and its factor; else those of mmio.
    volatile u8 *common, *notify, *config;
    u32 factor;
    u32 mmio_version;
    u64 features;
};

static u32 read32(volatile u8 *at) { return *(volatile u32 *)at; }
static void write32(volatile u8 *at, u32 value) { *(volatile u32 *)at = value; }
static void write16(volatile u8 *at, u16 value) { *(volatile u16 *)at = value; }
// In halves of 4 bytes, as virtio has it for fields of 8.
static void write64(volatile u8 *at, void *value) {
    write32(at, (u64)value);
    write32(at + 4, (u64)value >> 32);
}
// A field of the configuration may lie anywhere, and is read by bytes.
static u32 config(struct device *d, u32 offset, u32 bytes) {
    u32 value = 0;
    for (u32 i = 0; i < bytes; i++) value |= (u32)d->config[offset + i] << i * 8;
    return value;
}

static int has(struct device *d, u32 feature) { return d->features >> feature & 1; }

static void set_status(struct device *d, u8 status) {
    if (d->mmio_version) write32(d->common + 0x70, status);
    else d->common[20] = status;
}
static u8 status(struct device *d) {
    return d->mmio_version ? read32(d->common + 0x70) : d->common[20];
}

// Resets the device and takes of its features those that are wanted.
static void negotiate(struct device *d, u64 wanted) {
    u64 offered = 0;
    set_status(d, 0);
    while (status(d)) asm volatile("pause");
    set_status(d, 1);
    set_status(d, 3);
    for (u32 half = 0; half < 2; half++) {
        write32(d->common + (d->mmio_version ? 0x14 : 0), half);
        offered |= (u64)read32(d->common + (d->mmio_version ? 0x10 : 4)) << half * 32;
    }
    // VERSION_1 is for whoever can do it.
    if (d->mmio_version != 1) wanted |= 1ul << 32;
    else offered &= 0xffffffff;
    d->features = offered & wanted;
    for (u32 half = 0; half < 2; half++) {
        write32(d->common + (d->mmio_version ? 0x24 : 8), half);
        write32(d->common + (d->mmio_version ? 0x20 : 12), d->features >> half * 32);
    }
    if (d->mmio_version == 1) {
        write32(d->common + 0x28, 4096); // GuestPageSize
        return;
    }
    if (!has(d, 32)) fail("VERSION_1 is not offered", offered >> 32);
    set_status(d, 11);
    if (!(status(d) & 8)) fail("features are refused", d->features);
}

struct descriptor {
    u64 address;
    u32 bytes;
    u16 flags, next;
};

struct queue {
    struct device *device;
    u16 index, size, taken;
    struct descriptor *table;
    volatile u16 *available;
    volatile u8 *used;
    volatile u8 *doorbell;
};

// Makes a queue as large as the device has it.
static struct queue queue(struct device *d, u16 index) {
    struct queue q = {.device = d, .index = index};
    volatile u8 *c = d->common;
    if (d->mmio_version) {
        write32(c + 0x30, index);
        q.size = read32(c + 0x34);
    } else {
        write16(c + 22, index);
        q.size = *(volatile u16 *)(c + 24);
    }
    if (!q.size) fail("queue has no entries", index);
    // The parts lie as a legacy device has them.
    u64 drivers_bytes = (q.size * 18 + 6 + 4095) & ~4095ul;
    q.table = take(drivers_bytes + q.size * 8 + 6);
    q.available = (u16 *)(q.table + q.size);
    q.used = (u8 *)q.table + drivers_bytes;
    q.available[0] = 1; // NO_INTERRUPT: used entries are polled.
    if (d->mmio_version) {
        write32(c + 0x38, q.size);
        if (d->mmio_version == 1) {
            write32(c + 0x3c, 4096); // QueueAlign
            write32(c + 0x40, (u64)q.table >> 12);
        } else {
            write64(c + 0x80, q.table);
            write64(c + 0x90, (void *)q.available);
            write64(c + 0xa0, (void *)q.used);
            write32(c + 0x44, 1);
        }
        q.doorbell = c + 0x50;
    } else {
        write64(c + 32, q.table);
        write64(c + 40, (void *)q.available);
        write64(c + 48, (void *)q.used);
        q.doorbell = d->notify + *(volatile u16 *)(c + 30) * d->factor;
        write16(c + 28, 1);
    }
    return q;
}

static void add(struct descriptor *to, const void *data, u32 bytes, int device_writes) {
    to->address = (u64)data;
    to->bytes = bytes;
    to->flags = device_writes ? 2 : 0;
}

// Makes chains available, each of `length` descriptors from `first` on.
static void submit(struct queue *q, u16 first, u16 length) {
    for (u16 i = first; i < first + length - 1; i++) {
        q->table[i].flags |= 1;
        q->table[i].next = i + 1;
    }
    q->available[2 + q->available[1] % q->size] = first;
    asm volatile("" : : : "memory");
    q->available[1]++;
    asm volatile("lock; addl $0, (%%rsp)" : : : "memory");
    if (q->device->mmio_version) write32(q->doorbell, q->index);
    else write16(q->doorbell, q->index);
}

static int is_used(struct queue *q) { return *(volatile u16 *)(q->used + 2) != q->taken; }

// Polls until a chain is used, and gives the length that was written.
static u32 wait(struct queue *q) {
    while (!is_used(q)) asm volatile("pause");
    asm volatile("" : : : "memory");
    return read32(q->used + 4 + q->taken++ % q->size * 8 + 4);
}

// What each device has to do.

static void report(const char *what, u32 queues, u16 size) {
    print(what);
    print(": ");
    print_number(queues);
    print(" queues of ");
    print_number(size);
    print(" entries ok\n");
}

static void disk_request(struct queue *q, u32 type, u64 sector, u8 *data) {
    static u8 header[16], answer;
    memset(header, 0, 16);
    *(u32 *)header = type;
    *(u64 *)(header + 8) = sector;
    answer = 0xff;
    u16 length = 0;
    add(&q->table[length++], header, 16, 0);
    if (data) add(&q->table[length++], data, 512, type == 0);
    add(&q->table[length++], &answer, 1, 1);
    submit(q, 0, length);
    u32 written = wait(q);
    if (*(volatile u8 *)&answer) fail("status of a disk request", answer);
    if (written != (type == 0 ? 513 : 1)) fail("length of a disk request", written);
}

// Each queue copies sector 1 to a sector of its own, from 2 on.
static void drive_disk(struct device *d) {
    static u8 text[512], read[512];
    negotiate(d, 1 << 9 | 1 << 12); // FLUSH, MQ
    u32 queues = has(d, 12) ? config(d, 34, 2) : 1;
    if (queues > QUEUES) queues = QUEUES;
    struct queue *q = take(queues * sizeof *q);
    for (u32 i = 0; i < queues; i++) q[i] = queue(d, i);
    set_status(d, 15);
    for (u32 i = 0; i < queues; i++) {
        disk_request(&q[i], 0, 1, text);
        disk_request(&q[i], 1, 2 + i, text);
        if (has(d, 9)) disk_request(&q[i], 4, 0, 0);
        memset(read, 0, 512);
        disk_request(&q[i], 0, 2 + i, read);
        if (!same(text, read, 512)) fail("disk has other data than were written", i);
    }
    report("disk", queues, q[0].size);
}

// How often a receive queue is polled for a frame before the frame counts as lost.
enum { PATIENCE = 1 << 24 };

// Sends the frame that is in the transmit queue's first descriptor until it comes back, and gives
// the length that was written. A VMM that enables rings without waiting for the back-end's answer
// may let a guest send on a ring that is still disabled there: such frames are lost
// (vhost-user.rst "Ring states").
static u32 send_and_receive(struct queue *transmit, struct queue *receive, u32 pair) {
    for (;;) {
        submit(transmit, 0, 1);
        wait(transmit);
        for (u32 polls = 0; polls < PATIENCE && !is_used(receive); polls++) asm volatile("pause");
        if (is_used(receive)) return wait(receive);
        print("sent again: pair ");
        print_number(pair);
        print("\n");
    }
}

// On each pair of queues a frame goes out, and comes back.
static void drive_network(struct device *d) {
    static u8 sent[12 + 100], received[QUEUES][2048];
    negotiate(d, 1 << 17 | 1 << 22); // CTRL_VQ, MQ
    u32 pairs = has(d, 17) && has(d, 22) ? config(d, 8, 2) : 1;
    if (pairs > QUEUES) pairs = QUEUES;
    u32 header_bytes = has(d, 32) ? 12 : 10;
    struct queue *q = take((2 * pairs + 1) * sizeof *q);
    for (u32 i = 0; i < 2 * pairs; i++) q[i] = queue(d, i);
    if (pairs > 1) q[2 * pairs] = queue(d, 2 * config(d, 8, 2));
    set_status(d, 15);
    if (pairs > 1) {
        static u8 command[5] = {4, 0}, answer = 0xff; // MQ, VQ_PAIRS_SET
        struct queue *control = &q[2 * pairs];
        command[2] = pairs;
        add(&control->table[0], command, 2, 0);
        add(&control->table[1], command + 2, 2, 0);
        add(&control->table[2], &answer, 1, 1);
        submit(control, 0, 3);
        wait(control);
        if (*(volatile u8 *)&answer) fail("answer to VQ_PAIRS_SET", answer);
    }
    u8 *frame = sent + header_bytes;
    memset(frame, 0xff, 6);
    memcpy(frame + 6, "\x52\x54\0\0\0\1\x88\xb5", 8);
    for (u32 i = 0; i < pairs; i++) {
        add(&q[2 * i].table[0], received[i], 2048, 1);
        submit(&q[2 * i], 0, 1);
    }
    for (u32 i = 0; i < pairs; i++) {
        memset(frame + 14, 'a' + i, 86);
        add(&q[2 * i + 1].table[0], sent, header_bytes + 100, 0);
        u32 length = send_and_receive(&q[2 * i + 1], &q[2 * i], i);
        if (length != header_bytes + 100) fail("length of a frame that came back", length);
        if (!same(frame, received[i] + header_bytes, 100)) fail("another frame came back", i);
    }
    report("network", 2 * pairs, q[0].size);
}

struct fuse_in {
    u32 length, operation;
    u64 unique, node;
    u32 uid, gid, pid, padding;
};

// One request; what it writes beside its arguments is `data`, what it reads is `answer`.
static u32 fuse(struct queue *q, u32 operation, u64 node, const void *arguments, u32 bytes,
                const void *data, u32 data_bytes, void *answer, u32 answer_bytes) {
    static struct fuse_in in;
    static u32 out[4];
    static u64 unique;
    memset(&in, 0, sizeof in);
    in.length = sizeof in + bytes + data_bytes;
    in.operation = operation;
    in.unique = ++unique;
    in.node = node;
    u16 length = 0;
    add(&q->table[length++], &in, sizeof in, 0);
    add(&q->table[length++], arguments, bytes, 0);
    if (data) add(&q->table[length++], data, data_bytes, 0);
    add(&q->table[length++], out, sizeof out, 1);
    add(&q->table[length++], answer, answer_bytes, 1);
    submit(q, 0, length);
    u32 written = wait(q);
    if (((volatile u32 *)out)[1]) fail("error of a request for a file", -out[1]);
    if (((volatile u32 *)out)[0] != written) fail("length of an answer", written);
    return written - sizeof out;
}

// Each queue reads `greeting`, and appends it to `from-guest`.
static void drive_folder(struct device *d) {
    static u8 answer[4096], text[4096];
    negotiate(d, 0);
    u32 queues = config(d, 36, 4) + 1;
    if (queues > QUEUES + 1) queues = QUEUES + 1;
    struct queue *q = take(queues * sizeof *q);
    for (u32 i = 0; i < queues; i++) q[i] = queue(d, i);
    set_status(d, 15);

    struct queue *first = &q[1];
    static u32 init[16] = {7, 31};
    fuse(first, 26, 0, init, 16, 0, 0, answer, 64);
    fuse(first, 1, 1, "greeting", 9, 0, 0, answer, 128);
    u64 greeting = *(u64 *)answer;
    static u32 open[2];
    fuse(first, 14, greeting, open, 8, 0, 0, answer, 16);
    u64 greeting_handle = *(u64 *)answer;
    // O_RDWR | O_CREAT, mode 0644.
    static struct { u32 flags, mode, umask, open; char name[11]; } create = {
        0102, 0100644, 0, 0, "from-guest"};
    fuse(first, 35, 1, &create, 16 + 11, 0, 0, answer, 144);
    u64 copy = *(u64 *)answer, copy_handle = *(u64 *)(answer + 128);

    u64 offset = 0;
    for (u32 i = 1; i < queues; i++) {
        // Handle, offset and length, of fuse_read_in and fuse_write_in.
        static u64 read[5], write[5];
        read[0] = greeting_handle;
        read[2] = sizeof text;
        u32 bytes = fuse(&q[i], 15, greeting, read, 40, 0, 0, text, sizeof text);
        write[0] = copy_handle;
        write[1] = offset;
        write[2] = bytes;
        fuse(&q[i], 16, copy, write, 40, text, bytes, answer, 8);
        if (*(u32 *)answer != bytes) fail("bytes written to a file", *(u32 *)answer);
        offset += bytes;
    }
    report("folder", queues, first->size);
}

static void drive(struct device *d) {
    if (d->kind == DISK) drive_disk(d);
    if (d->kind == NETWORK) drive_network(d);
    if (d->kind == FOLDER) drive_folder(d);
}

// Where devices are.

static u32 pci_read(u32 function, u32 offset) {
    outl(0xcf8, 1u << 31 | function << 8 | offset);
    return inl(0xcfc);
}

static u8 pci_byte(u32 function, u32 offset) {
    return pci_read(function, offset & ~3) >> (offset & 3) * 8;
}

// What a capability of virtio leads to.
static volatile u8 *structure(u32 function, u32 capability) {
    u32 bar = 0x10 + pci_byte(function, capability + 4) * 4;
    u64 base = pci_read(function, bar);
    if ((base & 6) == 4) base |= (u64)pci_read(function, bar + 4) << 32;
    return map((base & ~15ul) + pci_read(function, capability + 8));
}

// Finds the structures of a virtio device on PCI, and drives it.
static void pci_function(u32 function) {
    u32 id = pci_read(function, 0);
    if ((id & 0xffff) != 0x1af4) return;
    struct device d = {};
    // A transitional device has its kind as subsystem.
    d.kind = id >> 16 >= 0x1040 ? (id >> 16) - 0x1040 : pci_read(function, 0x2c) >> 16;
    // Memory, bus master.
    u32 command = pci_read(function, 4) & 0xffff;
    outl(0xcf8, 1u << 31 | function << 8 | 4);
    outl(0xcfc, command | 6);
    for (u32 at = pci_byte(function, 0x34) & ~3; at; at = pci_byte(function, at + 1) & ~3) {
        if (pci_byte(function, at) != 9) continue;
        u8 type = pci_byte(function, at + 3);
        if (type == 1 && !d.common) d.common = structure(function, at);
        if (type == 2 && !d.notify) {
            d.notify = structure(function, at);
            d.factor = pci_read(function, at + 16);
        }
        if (type == 4 && !d.config) d.config = structure(function, at);
    }
    if (d.common && d.notify && d.config) drive(&d);
}

static void mmio(u64 address) {
    struct device d = {.common = (u8 *)address, .config = (u8 *)address + 0x100};
    if (read32(d.common) != 0x74726976) return;
    d.kind = read32(d.common + 8);
    d.mmio_version = read32(d.common + 4);
    drive(&d);
}

void guest(void) {
    print("begin\n");
    if (pci_read(0, 0) != 0xffffffff) {
        for (u32 function = 0; function < 256; function++) pci_function(function);
        end();
    }
    // QEMU's microvm; Firecracker, and that before 1.13.
    for (u64 i = 0; i < 24; i++) mmio(0xfeb00000 + i * 0x200);
    for (u64 i = 0; i < 8; i++) mmio(0xc0000000 + i * 0x1000);
    for (u64 i = 0; i < 8; i++) mmio(0xd0000000 + i * 0x1000);
    end();
}
