//! The allocator, as a program's own.
#![allow(clippy::unwrap_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};

#[global_allocator]
static ALLOCATOR: deme_kernels::Allocator = deme_kernels::Allocator;

fn begins(values: &[u8]) -> usize {
    values.as_ptr() as usize
}

#[test]
fn large_blocks_begin_on_a_cache_line_and_keep_their_contents_when_they_grow() {
    deme_kernels::keep_freed_memory();
    let mut values = Vec::new();
    for i in 0..300_000u32 {
        values.extend(i.to_le_bytes());
        if values.capacity() >= 4096 {
            assert_eq!(begins(&values) % 64, 0, "{} bytes", values.capacity());
        }
    }
    values.truncate(1000 * 4);
    values.shrink_to_fit();
    let (numbers, _) = values.as_chunks::<4>();
    assert!(numbers.iter().zip(0u32..).all(|(bytes, i)| u32::from_le_bytes(*bytes) == i));
    assert_eq!(numbers.len(), 1000);
}

#[test]
fn zeroed_blocks_are_zero_where_others_were_before() {
    for len in [100, 4095, 4096, 5000, 1 << 20] {
        let full = vec![0xffu8; len];
        assert!(full.iter().all(|byte| *byte == 0xff));
        drop(full);
        let zeros = vec![0u8; len];
        assert!(zeros.iter().all(|byte| *byte == 0), "{len}");
    }
}

#[test]
fn larger_alignments_are_kept() {
    for (size, align) in
        [(10, 1), (4096, 32), (5000, 64), (5000, 128), (100, 4096), (1 << 20, 4096)]
    {
        let layout = Layout::from_size_align(size, align).unwrap();
        // SAFETY: the layout has a size; the block is written within it and freed once.
        unsafe {
            let block = ALLOCATOR.alloc(layout);
            assert_eq!(block.addr() % align, 0, "{layout:?}");
            block.write_bytes(1, size);
            ALLOCATOR.dealloc(block, layout);
        }
    }
}

#[test]
fn blocks_go_from_thread_to_thread() {
    let sums: Vec<u64> = std::thread::scope(|scope| {
        let made = (1..5u64).map(|i| scope.spawn(move || vec![i; 100_000]));
        let made: Vec<_> = made.collect();
        made.into_iter().map(|made| made.join().unwrap().into_iter().sum()).collect()
    });
    assert_eq!(sums, [100_000, 200_000, 300_000, 400_000]);
}
