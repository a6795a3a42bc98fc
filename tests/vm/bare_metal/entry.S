// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// How VMMs enter the guest: in protected mode at the entry of the PVH note (cloud-hypervisor, QEMU,
// Firecracker), or in long mode at the entry of the ELF file (crosvm, older Firecracker).

        // XEN_ELFNOTE_PHYS32_ENTRY of xen/include/public/elfnote.h.
        .section .note.pvh, "a", @note
        .balign 4
        .long 4, 8, 18
        .asciz "Xen"
        .quad entry32

        .text
        .code32
entry32:
        cli
        mov $pml4, %eax
        mov %eax, %cr3
        mov %cr4, %eax
        or $0x20, %eax                  // PAE
        mov %eax, %cr4
        mov $0xc0000080, %ecx           // EFER
        rdmsr
        or $0x100, %eax                 // LME
        wrmsr
        mov %cr0, %eax
        or $0x80000001, %eax            // PG, PE
        mov %eax, %cr0
        lgdt gdt_register
        ljmp $8, $entry64

        .code64
        .globl entry64
entry64:
        cli
        mov $pml4, %eax
        mov %rax, %cr3
        mov $stack_top, %esp
        call guest
1:      hlt
        jmp 1b

        .data
        .balign 8
gdt:    .quad 0
        .quad 0x00af9b000000ffff        // code, 64 bits
        .quad 0x00cf93000000ffff        // data
gdt_register:
        .word . - gdt - 1
        .long gdt

        // The first 4 GiB as they are; `map` of guest.c adds what is above.
        .balign 4096
        .globl pml4, pdpt
pml4:   .quad pdpt + 3
        .fill 511, 8, 0
pdpt:   .quad directories + 0x0003, directories + 0x1003, directories + 0x2003
        .quad directories + 0x3003
        .fill 508, 8, 0
directories:
        .set page, 0
        .rept 2048
        .quad page + 0x83               // present, writable, 2 MiB
        .set page, page + 0x200000
        .endr

        .bss
        .balign 16
        .skip 16384
stack_top:
        .section .note.GNU-stack, "", @progbits
