//! Writes safetensors files piece by piece: tensors in any order, from any thread, metadata last.
//!
//! The header of a safetensors file comes first, but what a merge says about its inputs (their hashes) is
//! known only when the last byte has been read. So the header is written with a placeholder of the same
//! length, and again at the end, before the files get their names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use super::safetensors_file::header;
use super::sharded::{self, WeightFiles};
use super::{StateDictError, StoredTensor};
use crate::atomic_file::AtomicFile;

/// One file or several shards on their way to the disk. Dropped unfinished, it leaves nothing behind.
pub(crate) struct StateDictWriter<'a> {
    shards: Vec<Shard<'a>>,
    /// Shard and position in its file of each tensor.
    places: BTreeMap<&'a str, (usize, u64)>,
    index: Option<Index>,
    early_sync: EarlySync,
}

struct Shard<'a> {
    path: PathBuf,
    tensors: Vec<(&'a str, &'a StoredTensor)>,
    header_length: usize,
    file: AtomicFile,
}

/// The folder that the shards lie in, and what they are called.
struct Index {
    folder: PathBuf,
    files: WeightFiles,
}

impl<'a> StateDictWriter<'a> {
    /// A single file for tensors of these names, dtypes and shapes.
    pub(crate) fn to_file(
        path: &Path,
        tensors: impl Iterator<Item = (&'a str, &'a StoredTensor)>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, StateDictError> {
        Self::create(vec![(path.to_owned(), tensors.collect())], None, metadata)
    }

    /// Shards of at most so many tensor bytes in a folder, with their index; one file when all fits.
    pub(crate) fn to_folder(
        folder: &Path,
        files: &WeightFiles,
        max_shard_bytes: u64,
        tensors: impl Iterator<Item = (&'a str, &'a StoredTensor)>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, StateDictError> {
        let shards = sharded::split(tensors, max_shard_bytes);
        let count = shards.len();
        let named = shards.into_iter().enumerate().map(|(number, tensors)| {
            let name = match count {
                1 => files.single(),
                _ => files.shard(number, count),
            };
            (folder.join(name), tensors)
        });
        let index = Index { folder: folder.to_owned(), files: files.clone() };
        Self::create(named.collect(), Some(index), metadata)
    }

    fn create(
        shards: Vec<(PathBuf, Vec<(&'a str, &'a StoredTensor)>)>,
        index: Option<Index>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, StateDictError> {
        let mut places = BTreeMap::new();
        let shard = |(number, (path, mut tensors)): (usize, (PathBuf, Vec<_>))| {
            // Widest dtype first: every tensor then starts at a multiple of its own element size.
            tensors.sort_by_key(|(name, tensor): &(&'a str, &'a StoredTensor)| {
                (std::cmp::Reverse(tensor.dtype().bitsize()), *name)
            });
            let header = header(&tensors, metadata)?;
            let mut position = header.len() as u64;
            for (name, tensor) in &tensors {
                places.insert(*name, (number, position));
                position += tensor.bytes().len() as u64;
            }
            let file =
                AtomicFile::create(&path).map_err(|source| StateDictError::write(&path, source))?;
            file.write_at(0, &header).map_err(|source| StateDictError::write(&path, source))?;
            Ok(Shard { path, tensors, header_length: header.len(), file })
        };
        let shards: Vec<Shard<'a>> =
            shards.into_iter().enumerate().map(shard).collect::<Result<_, _>>()?;
        let early_sync = EarlySync::start(&shards)?;
        Ok(Self { shards, places, index, early_sync })
    }

    /// Writes some bytes of a tensor, from position `offset` of its bytes.
    pub(crate) fn write(
        &self,
        name: &str,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), StateDictError> {
        let &(shard, start) = self.places.get(name).expect("the tensor is one of the layout");
        let Shard { path, file, .. } = &self.shards[shard];
        file.write_at(start + offset, bytes)
            .map_err(|source| StateDictError::write(path, source))?;
        self.early_sync.count(shard, bytes.len());
        Ok(())
    }

    /// Writes the metadata, syncs, and gives the files their names. Returns the file to load: the index,
    /// or the single file.
    ///
    /// # Panics
    /// When the metadata is longer or shorter than the one the writer was created with.
    pub(crate) fn finish(
        self,
        metadata: &BTreeMap<String, String>,
    ) -> Result<PathBuf, StateDictError> {
        self.early_sync.finish()?;
        let mut written = Vec::new();
        let mut shard_of = Vec::new();
        for Shard { path, tensors, header_length, file } in self.shards {
            let header = header(&tensors, metadata)?;
            assert_eq!(header.len(), header_length, "the metadata must keep its length");
            file.write_at(0, &header)
                .and_then(|()| file.commit())
                .map_err(|source| StateDictError::write(&path, source))?;
            shard_of.extend(tensors.into_iter().map(|tensor| (tensor, written.len())));
            written.push(path);
        }
        match self.index {
            None => Ok(written.swap_remove(0)),
            Some(Index { folder, files }) => {
                sharded::finish_folder(&folder, &files, written, &shard_of)
            }
        }
    }
}

/// Syncs what is written while more is being written. The disk then works at the same time as the
/// processor, and little is left to wait for at the end.
struct EarlySync {
    written: AtomicUsize,
    shards: Sender<usize>,
    thread: JoinHandle<Result<(), StateDictError>>,
}

impl EarlySync {
    /// Written bytes that are worth a sync.
    const STEP: usize = 32 << 20;

    fn start(shards: &[Shard<'_>]) -> Result<Self, StateDictError> {
        let handle = |shard: &Shard<'_>| match shard.file.handle() {
            Ok(handle) => Ok((shard.path.clone(), handle)),
            Err(source) => Err(StateDictError::write(&shard.path, source)),
        };
        let files = shards.iter().map(handle).collect::<Result<Vec<_>, _>>()?;
        let (sender, receiver) = mpsc::channel();
        // A failed sync is reported once, and here: the later ones of the same file may know nothing of it.
        let thread = std::thread::spawn(move || {
            receiver.into_iter().try_for_each(|shard: usize| {
                let (path, file) = &files[shard];
                file.sync_data().map_err(|source| StateDictError::write(path, source))
            })
        });
        Ok(Self { written: AtomicUsize::new(0), shards: sender, thread })
    }

    fn count(&self, shard: usize, bytes: usize) {
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        if before / Self::STEP != (before + bytes) / Self::STEP {
            // Without a listener a sync has failed, which `finish` tells.
            let _ = self.shards.send(shard);
        }
    }

    fn finish(self) -> Result<(), StateDictError> {
        drop(self.shards);
        self.thread.join().expect("the thread only syncs files")
    }
}
