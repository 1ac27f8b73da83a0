//! Memory for programs that train: what a step frees, the next one takes again.
//!
//! The system's allocator with two changes. A large block begins on a cache line, where glibc's begin 16
//! bytes behind one and a vector's load often straddles two. And with glibc freed memory stays with the
//! process, in huge pages where the system has them ([`keep_freed_memory`]); by default each large block
//! goes back to the kernel and its pages are zeroed anew.

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
    heap::grown_to(outer.addr());
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
    heap::keep();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod heap {
    use std::ptr::with_exposed_provenance_mut;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const PAGE: usize = 4096;
    /// Where the heap ended when it was last looked at; before [`keep`] nothing is beyond it.
    static END: AtomicUsize = AtomicUsize::new(usize::MAX);

    /// The address behind the heap's last byte.
    fn end() -> usize {
        // SAFETY: an increment of zero asks for the end and changes nothing.
        unsafe { libc::sbrk(0) }.addr()
    }

    pub(super) fn keep() {
        // SAFETY: sets four numbers of the allocator's; any value is valid.
        unsafe {
            // Every block from the one heap, in which neighbours that are free become one; its end is
            // never given back, and moves by large steps.
            libc::mallopt(libc::M_MMAP_MAX, 0);
            libc::mallopt(libc::M_ARENA_MAX, 1);
            libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
            libc::mallopt(libc::M_TOP_PAD, 16 << 20);
        }
        END.store(end().next_multiple_of(PAGE), Ordering::Relaxed);
    }

    /// Asks for huge pages where the heap has grown, if `block` lies there.
    pub(super) fn grown_to(block: usize) {
        let before = END.load(Ordering::Relaxed);
        if block < before {
            return;
        }
        let now = end() / PAGE * PAGE;
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        if block < now && END.compare_exchange(before, now, set, get).is_ok() {
            let begin = with_exposed_provenance_mut(before);
            // SAFETY: advice on whole pages of the heap; it changes no contents. A kernel without huge
            // pages refuses it, which is as good.
            unsafe { libc::madvise(begin, now - before, libc::MADV_HUGEPAGE) };
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod heap {
    pub(super) fn keep() {}

    pub(super) fn grown_to(_block: usize) {}
}
