// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory by itself.

use std::sync::atomic::Ordering;

use super::*;

const PAGE: usize = 4096;

#[test]
fn accesses_cross_adjacent_regions_and_stop_at_gaps() {
    let memory = GuestMemory::new(&MemoryLayout::adjacent(2, PAGE)).unwrap();
    let border = FIRST_GPA + PAGE as u64;
    memory.write(border - 2, &[1, 2, 3, 4]).unwrap();
    assert_eq!(memory.read_vec(border - 2, 4).unwrap(), [1, 2, 3, 4]);
    let [low, high] = memory.regions() else {
        panic!("two regions");
    };
    assert_eq!(low.window().u8(PAGE - 1).load(Ordering::Relaxed), 2);
    assert_eq!(high.window().u8(0).load(Ordering::Relaxed), 3);
    assert!(matches!(
        memory.slice(border - 2, 4),
        Err(FrontendError::NotMapped { bytes: 4, .. })
    ));
    let end = border + PAGE as u64;
    assert!(matches!(
        memory.write(end - 1, &[0; 2]),
        Err(FrontendError::NotMapped { gpa, bytes: 1 }) if gpa == end
    ));
    memory.uva(FIRST_GPA - 1).unwrap_err();
}

#[test]
fn allocations_keep_clear_of_borders_and_each_other() {
    let layout = MemoryLayout::adjacent(2, 4 * PAGE).border_reserve(PAGE);
    let memory = GuestMemory::new(&layout).unwrap();
    let border = FIRST_GPA + 4 * PAGE as u64;
    let mut taken = Vec::new();
    while let Ok(gpa) = memory.alloc(PAGE, PAGE) {
        taken.push(gpa);
    }
    let page = PAGE as u64;
    let expected = [0, 1, 2, 5, 6, 7].map(|at| FIRST_GPA + at * page);
    assert_eq!(taken, expected);
    assert_eq!(memory.alloc_straddling(100, PAGE).unwrap(), border - 100);
    let second = memory.alloc_straddling(1, 1);
    assert!(
        matches!(second, Err(FrontendError::NoBorder { .. })),
        "{second:?}"
    );
}

#[test]
fn overlapping_layouts_are_refused() {
    let regions = vec![
        RegionSpec::new(FIRST_GPA, 2 * PAGE),
        RegionSpec::new(FIRST_GPA + PAGE as u64, PAGE),
    ];
    let refused = GuestMemory::new(&MemoryLayout::of(regions));
    assert!(
        matches!(refused, Err(FrontendError::Unusable { value, .. }) if value == FIRST_GPA + PAGE as u64),
        "{refused:?}"
    );
}

#[test]
fn sealed_files_do_not_shrink_and_open_ones_do() {
    for (sealing, shrinks) in [(Sealing::Sealed, false), (Sealing::Open, true)] {
        let layout = MemoryLayout::single(2 * PAGE).sealing(sealing);
        let memory = GuestMemory::new(&layout).unwrap();
        let file = memory.regions()[0].file();
        assert_eq!(rustix::fs::ftruncate(file, 0).is_ok(), shrinks);
    }
}

#[test]
fn region_info_tells_offset_and_chosen_address() {
    let spec = RegionSpec {
        mmap_offset: PAGE as u64,
        uva: Uva::At(0x1234_0000),
        ..RegionSpec::new(0, PAGE)
    };
    let memory = GuestMemory::new(&MemoryLayout::of(vec![spec])).unwrap();
    memory.write(0, b"ringside").unwrap();
    let region = &memory.regions()[0];
    let info = region.info();
    assert_eq!((info.userspace_addr, info.mmap_offset), (0x1234_0000, 4096));
    assert_eq!(memory.uva(8).unwrap(), 0x1234_0008);
    let mut bytes = [0; 8];
    rustix::io::pread(region.file(), &mut bytes, info.mmap_offset).unwrap();
    assert_eq!(&bytes, b"ringside");
}

#[test]
#[should_panic(expected = "access 4095+2 outside a window of 4096 bytes")]
fn a_field_beyond_the_window_panics() {
    let memory = GuestMemory::new(&MemoryLayout::single(PAGE)).unwrap();
    let _ = memory.regions()[0].window().u16(PAGE - 1);
}
