// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a BIOS boots.

/// Sector that the boot sector below reads, and the one it writes.
pub(super) const READ_LBA: u64 = 1000;
pub(super) const WRITE_LBA: u64 = 2000;

/// A boot sector that reads [`READ_LBA`] to 0000:8000 by the firmware (INT 13h AH=42h), writes it to
/// [`WRITE_LBA`] (AH=43h), prints the text in it on the first serial port and halts.
pub(super) fn boot_sector() -> [u8; 512] {
    #[rustfmt::skip]
    const CODE: [u8; 0x39] = [
        0x31, 0xc0,             // 00       xor ax, ax
        0x8e, 0xd8,             // 02       mov ds, ax
        0x8e, 0xd0,             // 04       mov ss, ax
        0xbc, 0x00, 0x7c,       // 06       mov sp, 0x7c00
        0xbe, 0x80, 0x7c,       // 09       mov si, read packet; dl is the boot drive
        0xb4, 0x42,             // 0c       mov ah, 0x42
        0xcd, 0x13,             // 0e       int 0x13
        0x72, 0x24,             // 10       jc halt
        0xbe, 0x90, 0x7c,       // 12       mov si, write packet
        0xb8, 0x00, 0x43,       // 15       mov ax, 0x4300
        0xcd, 0x13,             // 18       int 0x13
        0x72, 0x1a,             // 1a       jc halt
        0xbe, 0x00, 0x80,       // 1c       mov si, 0x8000
        0xac,                   // 1f next: lodsb
        0x84, 0xc0,             // 20       test al, al
        0x74, 0x12,             // 22       jz halt
        0x88, 0xc3,             // 24       mov bl, al
        0xba, 0xfd, 0x03,       // 26 wait: mov dx, line status
        0xec,                   // 29       in al, dx
        0xa8, 0x20,             // 2a       test al, transmitter empty
        0x74, 0xf8,             // 2c       jz wait
        0x88, 0xd8,             // 2e       mov al, bl
        0xba, 0xf8, 0x03,       // 30       mov dx, data
        0xee,                   // 33       out dx, al
        0xeb, 0xe9,             // 34       jmp next
        0xf4,                   // 36 halt: hlt
        0xeb, 0xfd,             // 37       jmp halt
    ];
    let mut sector = [0; 512];
    sector[..CODE.len()].copy_from_slice(&CODE);
    for (at, lba) in [(0x80, READ_LBA), (0x90, WRITE_LBA)] {
        // Disk address packet: size 16, one sector, buffer 0000:8000.
        sector[at..at + 8].copy_from_slice(&[16, 0, 1, 0, 0x00, 0x80, 0, 0]);
        sector[at + 8..at + 16].copy_from_slice(&lba.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}
