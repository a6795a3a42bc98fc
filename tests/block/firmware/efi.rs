// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What UEFI firmware boots: a FAT file system with `EFI/BOOT/BOOTX64.EFI`.

const SECTOR: usize = 512;
const SECTORS_PER_CLUSTER: usize = 4;
const FAT_SECTORS: usize = 6;
const ROOT_SECTORS: usize = 32;
/// Few enough clusters that the file system is a FAT12.
const SECTORS: u16 = 8192;
const FIRST_FAT: usize = SECTOR;
const ROOT: usize = FIRST_FAT + 2 * FAT_SECTORS * SECTOR;
/// Of cluster 2, the first there is.
const DATA: usize = ROOT + ROOT_SECTORS * SECTOR;

/// Where the code of the application lies in its file, and in memory.
const CODE_OFFSET: usize = 0x200;
const CODE_ADDRESS: u32 = 0x1000;

/// A file system whose boot loader prints `text` on the first serial port and halts.
pub(super) fn file_system(text: &str) -> Vec<u8> {
    const EFI: u16 = 2;
    const BOOT: u16 = 3;
    const LOADER: u16 = 4;
    let mut image = vec![0; usize::from(SECTORS) * SECTOR];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &boot_record());
    for fat in 0..2 {
        // Each of the three clusters is the last of its chain.
        let entries = [0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f];
        put(FIRST_FAT + fat * FAT_SECTORS * SECTOR, &entries);
    }
    let loader = application(text);
    put(ROOT, &entry(b"EFI        ", true, EFI, 0));
    for (directory, parent, name, is_directory, first, bytes) in [
        (EFI, 0, b"BOOT       ", true, BOOT, 0),
        (BOOT, EFI, b"BOOTX64 EFI", false, LOADER, loader.len()),
    ] {
        let entries = [
            entry(b".          ", true, directory, 0),
            entry(b"..         ", true, parent, 0),
            entry(name, is_directory, first, bytes),
        ];
        put(cluster(directory), &entries.concat());
    }
    put(cluster(LOADER), &loader);
    image
}

fn cluster(number: u16) -> usize {
    DATA + (usize::from(number) - 2) * SECTORS_PER_CLUSTER * SECTOR
}

/// The first sector: what the file system looks like.
fn boot_record() -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    let mut put = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0xeb, 0x3c, 0x90]);
    put(3, b"RINGSIDE");
    put(11, &512_u16.to_le_bytes());
    // Sectors of a cluster, reserved sectors, FATs, entries of the root directory.
    put(13, &[4, 1, 0, 2, 0, 2]);
    put(19, &SECTORS.to_le_bytes());
    // A fixed disk, sectors of a FAT, then a geometry that nobody needs.
    put(21, &[0xf8, 6, 0, 32, 0, 64, 0]);
    put(36, &[0x80, 0, 0x29, 1, 2, 3, 4]);
    put(43, b"RINGSIDE   FAT12   ");
    put(510, &[0x55, 0xaa]);
    sector
}

/// An entry of a directory.
fn entry(name: &[u8; 11], is_directory: bool, first: u16, bytes: usize) -> [u8; 32] {
    let mut entry = [0; 32];
    entry[..11].copy_from_slice(name);
    entry[11] = if is_directory { 0x10 } else { 0x20 };
    entry[26..28].copy_from_slice(&first.to_le_bytes());
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    entry[28..].copy_from_slice(&bytes.to_le_bytes());
    entry
}

/// An application of UEFI (PE32+) of one section.
fn application(text: &str) -> Vec<u8> {
    #[rustfmt::skip]
    const CODE: [u8; 35] = [
        0x48, 0x8d, 0x35, 0x1c, 0, 0, 0, // 00       lea rsi, text
        0xac,                            // 07 next: lodsb
        0x84, 0xc0,                      // 08       test al, al
        0x74, 0x14,                      // 0a       jz halt
        0x88, 0xc3,                      // 0c       mov bl, al
        0x66, 0xba, 0xfd, 0x03,          // 0e       mov dx, line status
        0xec,                            // 12 wait: in al, dx
        0xa8, 0x20,                      // 13       test al, transmitter empty
        0x74, 0xfb,                      // 15       jz wait
        0x88, 0xd8,                      // 17       mov al, bl
        0x66, 0xba, 0xf8, 0x03,          // 19       mov dx, data
        0xee,                            // 1d       out dx, al
        0xeb, 0xe7,                      // 1e       jmp next
        0xf4,                            // 20 halt: hlt
        0xeb, 0xfd,                      // 21       jmp halt
    ];
    let mut file = vec![0; CODE_OFFSET];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        file[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    // The header of DOS: its mark, and where that of the file is.
    put(b"MZ");
    put(&[0; 58]);
    put(&64_u32.to_le_bytes());
    put(b"PE\0\0");
    // x86-64, one section, no symbols, 240 bytes of optional header, an executable.
    put(&[0x64, 0x86, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    put(&[240, 0, 0x22, 0]);
    put(&[0x0b, 0x02, 0, 0]);
    // Sizes of code and data, entry, start of the code.
    for word in [0x200, 0, 0, CODE_ADDRESS, CODE_ADDRESS] {
        put(&word.to_le_bytes());
    }
    // Any address; alignment in memory and in the file; versions; sizes of image and headers.
    put(&0_u64.to_le_bytes());
    for word in [0x1000, 0x200, 0, 0, 0, 0, 0x2000, 0x200, 0] {
        let word: u32 = word;
        put(&word.to_le_bytes());
    }
    // An application of UEFI; stacks and heaps; an empty directory.
    put(&[10, 0, 0, 0]);
    put(&[0; 36]);
    put(&16_u32.to_le_bytes());
    put(&[0; 128]);
    // The section: read and executed.
    put(b".text\0\0\0");
    for word in [0x200, CODE_ADDRESS, 0x200, 0x200, 0, 0, 0, 0x6000_0020] {
        put(&word.to_le_bytes());
    }
    file.extend(CODE);
    file.extend(text.bytes());
    file.resize(2 * CODE_OFFSET, 0);
    file
}
