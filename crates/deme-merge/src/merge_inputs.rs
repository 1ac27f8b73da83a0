//! What is merged, and the passes over it: every tensor in blocks that stay in the cache, on all threads.
//!
//! Models are read where they lie in the mapped files. What has been read is given back at once, so that
//! memory does not grow with the models. What is done with the numbers is the matter of `merge`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::Mmap;
use rayon::prelude::*;

use crate::merge_error::{MergeError, ModelRole};
use crate::state_dict::{StateDict, StoredTensor};

/// Entries that are merged at once: of five models in f32 a little more than half a megabyte.
const BLOCK_ENTRIES: usize = 1 << 15;
/// Bytes after which pages are given back: often enough to matter, seldom enough to cost nothing.
const BYTES_IN_MEMORY: usize = 16 << 20;

/// Bytes before and behind what is read that the system may bring in with it.
#[cfg(unix)]
const NEIGHBOURHOOD: usize = 2 << 20;

/// The models of one merge.
#[derive(Clone, Copy, Debug)]
pub struct MergeInputs<'a> {
    /// theta, the pretrained model.
    pub theta_pre: &'a StateDict,
    /// theta_i, the models finetuned from it.
    pub experts: &'a [StateDict],
    /// What the method must know about each expert: nothing for most methods, the diagonal of the Fisher
    /// information (`fisher`; tensors of the names and shapes of the model's), or Gram matrices of the
    /// inputs of linear layers (`regmean`; `[in, in]` under the name of the layer's weight).
    pub statistics: &'a [StateDict],
}

/// The same tensor of all models.
pub(crate) struct TensorSet<'a> {
    pub(crate) name: &'a str,
    pub(crate) theta: &'a StoredTensor,
    pub(crate) experts: Vec<&'a StoredTensor>,
    /// Of each expert a number for each entry, where the method uses such.
    pub(crate) statistics: Vec<&'a StoredTensor>,
    pub(crate) files: &'a MappedFiles,
}

/// Some entries of a tensor of all models, as f32.
pub(crate) struct Block<'a> {
    /// Where in the flattened tensor.
    pub(crate) entries: Range<usize>,
    pub(crate) theta: &'a [f32],
    pub(crate) experts: &'a [&'a [f32]],
    pub(crate) statistics: &'a [&'a [f32]],
}

impl<'a> TensorSet<'a> {
    /// The tensor of theta, of the experts, and their statistics, in this order.
    pub(crate) fn models(&self) -> impl Iterator<Item = (ModelRole, &'a StoredTensor)> {
        let experts = (0..).map(ModelRole::Expert).zip(self.experts.iter().copied());
        let statistics = (0..).map(ModelRole::Statistics).zip(self.statistics.iter().copied());
        std::iter::once((ModelRole::Pretrained, self.theta)).chain(experts).chain(statistics)
    }

    /// Goes through the tensor from its first entry to its last. `buffers` are used again by the next call.
    pub(crate) fn for_each_block(
        &self,
        buffers: &mut Vec<Vec<f32>>,
        mut visit: impl FnMut(&Block<'_>) -> Result<(), MergeError>,
    ) -> Result<(), MergeError> {
        let models: Vec<&StoredTensor> = self.models().map(|(_, stored)| stored).collect();
        buffers.resize_with(models.len().max(buffers.len()), Vec::new);
        let numel = self.theta.numel();
        for start in (0..numel).step_by(BLOCK_ENTRIES) {
            let entries = start..numel.min(start + BLOCK_ENTRIES);
            let mut values = Vec::with_capacity(models.len());
            for (stored, buffer) in models.iter().zip(buffers.iter_mut()) {
                values.push(stored.f32_block(entries.clone(), buffer)?);
            }
            let (experts, statistics) = values[1..].split_at(self.experts.len());
            visit(&Block { entries: entries.clone(), theta: values[0], experts, statistics })?;
            models.iter().for_each(|stored| self.files.note_read(stored, entries.clone()));
        }
        Ok(())
    }
}

impl<'a> MergeInputs<'a> {
    /// Does `work` for each tensor (with its number in the order of the names), on all threads. Each thread
    /// has a state of its own, which `state` makes; all of them are returned.
    ///
    /// # Errors
    /// The error of the first tensor, in the order of the names, that has one; whichever thread was first.
    pub(crate) fn for_each_tensor<S: Send>(
        &self,
        state: impl Fn() -> S + Sync,
        work: impl Fn(&mut S, usize, &TensorSet<'_>) -> Result<(), MergeError> + Sync,
    ) -> Result<Vec<S>, MergeError> {
        let files = &MappedFiles::of(self);
        let states: Mutex<Vec<S>> = Mutex::new(Vec::new());
        let lock = || states.lock().unwrap_or_else(PoisonError::into_inner);
        // Tensors behind one that failed need not be looked at; those before it may fail too.
        let first_failure = AtomicUsize::new(usize::MAX);
        let failures: Vec<(usize, MergeError)> = self
            .theta_pre
            .iter()
            .enumerate()
            .par_bridge()
            .filter_map(|(number, (name, theta))| {
                if number > first_failure.load(Ordering::Relaxed) {
                    return None;
                }
                let free = lock().pop();
                let mut own = free.unwrap_or_else(&state);
                let result = work(&mut own, number, &self.tensor_set(name, theta, files));
                lock().push(own);
                let error = result.err()?;
                first_failure.fetch_min(number, Ordering::Relaxed);
                Some((number, error))
            })
            .collect();
        match failures.into_iter().min_by_key(|(number, _)| *number) {
            Some((_, error)) => Err(error),
            None => Ok(states.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn tensor_set<'b>(
        &self,
        name: &'b str,
        theta: &'b StoredTensor,
        files: &'b MappedFiles,
    ) -> TensorSet<'b>
    where
        'a: 'b,
    {
        let expert = |expert: &'a StateDict| {
            expert.get(name).expect("check_same_tensors found it in every expert")
        };
        TensorSet {
            name,
            theta,
            experts: self.experts.iter().map(expert).collect(),
            statistics: Vec::new(),
            files,
        }
    }
}

/// The files that all tensors of a merge lie in. The pages of a mapped file count as this process's memory
/// from when they are read; they are given back every few megabytes.
pub(crate) struct MappedFiles {
    files: Vec<MappedFile>,
    bytes_read: AtomicUsize,
}

/// A file, and between which bytes it was read since pages were last given back.
struct MappedFile {
    file: Arc<Mmap>,
    start: AtomicUsize,
    end: AtomicUsize,
}

impl MappedFiles {
    fn of(inputs: &MergeInputs<'_>) -> Self {
        let models = std::iter::once(inputs.theta_pre).chain(inputs.experts);
        let tensors = models.chain(inputs.statistics).flat_map(StateDict::iter);
        // By address: which comes first is of no matter.
        let by_address: BTreeMap<*const Mmap, &Arc<Mmap>> = tensors
            .filter_map(|(_, stored)| stored.place(0..0).map(|(file, _)| (Arc::as_ptr(file), file)))
            .collect();
        let unread = |file: &Arc<Mmap>| MappedFile {
            file: Arc::clone(file),
            start: AtomicUsize::new(usize::MAX),
            end: AtomicUsize::new(0),
        };
        let files = by_address.into_values().map(unread).collect();
        Self { files, bytes_read: AtomicUsize::new(0) }
    }

    /// Notes that some entries of a tensor were read, and gives back pages when there are enough. Those that
    /// are still in use come back by themselves.
    pub(crate) fn note_read(&self, stored: &StoredTensor, entries: Range<usize>) {
        let Some((file, bytes)) = stored.place(entries) else { return };
        let read = self.files.iter().find(|read| Arc::ptr_eq(&read.file, file));
        let read = read.expect("the files are those of all tensors");
        read.start.fetch_min(bytes.start, Ordering::Relaxed);
        read.end.fetch_max(bytes.end, Ordering::Relaxed);
        let before = self.bytes_read.fetch_add(bytes.len(), Ordering::Relaxed);
        if before / BYTES_IN_MEMORY != (before + bytes.len()) / BYTES_IN_MEMORY {
            self.files.iter().for_each(MappedFile::release);
        }
    }
}

impl MappedFile {
    fn release(&self) {
        let start = self.start.swap(usize::MAX, Ordering::Relaxed);
        let end = self.end.swap(0, Ordering::Relaxed);
        // Advice that is not taken costs memory, never a result.
        #[cfg(unix)]
        if start < end {
            use memmap2::UncheckedAdvice::DontNeed;
            let start = start.saturating_sub(NEIGHBOURHOOD);
            let end = end.saturating_add(NEIGHBOURHOOD).min(self.file.len());
            // SAFETY: the map is shared with the file and only ever read, so no change can be lost.
            let _ = unsafe { self.file.unchecked_advise_range(DontNeed, start, end - start) };
        }
        #[cfg(not(unix))]
        let _ = (start, end);
    }
}
