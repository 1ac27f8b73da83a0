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

/// A buffer with unspecified contents, returned to its thread when dropped.
pub(crate) struct Scratch {
    values: Vec<f32>,
    len: usize,
}

impl Scratch {
    /// The smallest kept buffer that is large enough, or a new one.
    pub(crate) fn new(len: usize) -> Self {
        let mut values = FREE.with_borrow_mut(|free| {
            let enough = |i: &usize| free[*i].len() >= len;
            let best = (0..free.len()).filter(enough).min_by_key(|i| free[*i].len());
            match best.or(free.len().checked_sub(1)) {
                Some(i) => free.swap_remove(i),
                None => Vec::new(),
            }
        });
        if values.len() < len {
            // A fresh zeroed allocation costs no pass over memory, growing in place would.
            values = vec![0.0; len];
        }
        Self { values, len }
    }

    /// The same for a function that writes all of it.
    pub(crate) fn uninit(&mut self) -> &mut [MaybeUninit<f32>] {
        let len = self.len;
        let start = self.values.as_mut_ptr().cast();
        // SAFETY: `len` entries of ours; every f32 is a valid MaybeUninit<f32>, and safe code can
        // only write f32 through it or leave it.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }
}

impl Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.len]
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
