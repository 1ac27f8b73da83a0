//! Memory: scratch that is kept from call to call, and outputs written by several threads.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut, Range};

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Buffers a thread keeps for its next calls.
const KEPT: usize = 8;

/// Floats in a cache line.
const CACHE_LINE: usize = 16;

/// The first entry at the beginning of a cache line; there are `CACHE_LINE - 1` entries more than are used.
fn line_start(values: &[f32]) -> usize {
    // Where the alignment is not known any start is correct.
    values.as_ptr().align_offset(4 * CACHE_LINE).min(CACHE_LINE - 1)
}

/// Values that begin at a cache line, for weights that are packed once.
#[derive(Debug)]
pub(crate) struct Aligned {
    values: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let values = vec![0.0; len + CACHE_LINE - 1];
        let start = line_start(&values);
        Self { values, start, len }
    }
}

impl Deref for Aligned {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.values[self.start..self.start + self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..self.start + self.len]
    }
}

/// A buffer with unspecified contents that begins at a cache line, returned to its thread when
/// dropped.
pub(crate) struct Scratch {
    values: Vec<f32>,
    start: usize,
    len: usize,
}

impl Scratch {
    /// The smallest kept buffer that is large enough, or a new one.
    pub(crate) fn new(len: usize) -> Self {
        let with_start = len + CACHE_LINE - 1;
        let mut values = FREE.with_borrow_mut(|free| {
            let enough = |i: &usize| free[*i].len() >= with_start;
            let best = (0..free.len()).filter(enough).min_by_key(|i| free[*i].len());
            match best.or(free.len().checked_sub(1)) {
                Some(i) => free.swap_remove(i),
                None => Vec::new(),
            }
        });
        if values.len() < with_start {
            // A fresh zeroed allocation costs no pass over memory, growing in place would.
            values = vec![0.0; with_start];
        }
        let start = line_start(&values);
        Self { values, start, len }
    }

    /// The same with zeros in it.
    pub(crate) fn zeros(len: usize) -> Self {
        let mut zeros = Self::new(len);
        zeros.fill(0.0);
        zeros
    }

    /// The same for a function that writes all of it.
    pub(crate) fn uninit(&mut self) -> &mut [MaybeUninit<f32>] {
        let len = self.len;
        let start = self.as_mut_ptr().cast();
        // SAFETY: `len` entries of ours; every f32 is a valid MaybeUninit<f32>, and safe code can
        // only write f32 through it or leave it.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }
}

impl Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.values[self.start..self.start + self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..self.start + self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        // During a thread's end its list may already be gone: then the buffer is simply freed.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(values);
            }
        });
    }
}

/// An output that several threads write, each its own entries.
#[derive(Clone, Copy)]
pub(crate) struct SharedOutput<'a> {
    start: *mut f32,
    len: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a pointer to floats borrowed for 'a; writing through it is unsafe and its callers
// promise that no two threads touch the same entry.
unsafe impl Send for SharedOutput<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedOutput<'_> {}

impl<'a> SharedOutput<'a> {
    pub(crate) fn new(values: &'a mut [f32]) -> Self {
        let (start, len) = (values.as_mut_ptr(), values.len());
        Self { start, len, lifetime: PhantomData }
    }

    pub(crate) fn uninit(values: &'a mut [MaybeUninit<f32>]) -> Self {
        let (start, len) = (values.as_mut_ptr().cast(), values.len());
        Self { start, len, lifetime: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A pointer to entry `range.start` after checking that the whole range lies inside.
    pub(crate) fn pointer(&self, range: Range<usize>) -> *mut f32 {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: the start is inside (or one past) the allocation, by the check.
        unsafe { self.start.add(range.start) }
    }
}

impl<'a> SharedOutput<'a> {
    /// A part of it.
    pub(crate) fn range(&self, range: Range<usize>) -> SharedOutput<'a> {
        SharedOutput { start: self.pointer(range.clone()), len: range.len(), lifetime: PhantomData }
    }
}
