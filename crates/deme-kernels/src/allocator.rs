//! Memory for programs that train: what a step frees, the next one takes again.
//!
//! The system's allocator with two changes. Freed memory stays with the process ([`keep_freed_memory`]):
//! by default glibc gives each large block back to the kernel and has its pages zeroed anew. And a large
//! block begins on a cache line, where glibc's begin 16 bytes behind one and a vector's load often
//! straddles two.

use std::alloc::{GlobalAlloc, Layout, System};

/// Large blocks are those of at least so many bytes.
const LARGE: usize = 4096;
/// A cache line.
const LINE: usize = 64;

/// To be set as a program's `#[global_allocator]`.
#[derive(Debug, Clone, Copy)]
pub struct Allocator;

/// The layout of the system's block that holds a large block of ours, or `None` when the system's own
/// block is ours.
///
/// There is room to move the beginning to a line, and in front of it for the address of the system's
/// block. (Asking the system for an aligned block leaves small holes between the large ones.)
fn enclosing(layout: Layout) -> Option<Layout> {
    if layout.size() < LARGE || layout.align() > LINE {
        return None;
    }
    let size = layout.size().checked_add(size_of::<usize>() + LINE)?;
    Layout::from_size_align(size, align_of::<usize>()).ok()
}

/// Our block within the system's, or null for null.
///
/// # Safety
/// `outer` is null or a block of [`enclosing`]'s layout.
unsafe fn place(outer: *mut u8) -> *mut u8 {
    if outer.is_null() {
        return outer;
    }
    let behind_address = outer.addr() + size_of::<usize>();
    let begin = behind_address.next_multiple_of(LINE) - outer.addr();
    // SAFETY: begin is at most size_of::<usize>() + LINE - 1, so our block ends inside the system's;
    // the address stands in the bytes before it, which a line's beginning keeps aligned.
    unsafe {
        let ours = outer.add(begin);
        ours.cast::<*mut u8>().sub(1).write(outer);
        ours
    }
}

// SAFETY: blocks come from `System`, moved inside larger blocks of its own by `place`; `dealloc` finds
// the system's block again by the same rule of `enclosing`, which depends on the layout alone.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match enclosing(layout) {
            // SAFETY: the caller's promise; the enclosing layout has a size.
            Some(outer) => unsafe { place(System.alloc(outer)) },
            // SAFETY: the caller's promise.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match enclosing(layout) {
            // SAFETY: the caller's promise; the enclosing layout has a size.
            Some(outer) => unsafe { place(System.alloc_zeroed(outer)) },
            // SAFETY: the caller's promise.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match enclosing(layout) {
            // SAFETY: `place` wrote the address of the system's block there.
            Some(outer) => unsafe { System.dealloc(block.cast::<*mut u8>().sub(1).read(), outer) },
            // SAFETY: the caller's promise.
            None => unsafe { System.dealloc(block, layout) },
        }
    }
}

/// Keeps freed memory for the next step, for the rest of this process. To be called once, at the
/// program's start. Does something with glibc alone.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets three numbers of the allocator's; any value is valid.
    unsafe {
        // Every block from the one heap, in which neighbours that are free become one; and the heap's
        // end is never given back.
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}
