//! Files that are either complete or absent.
//!
//! Everything is written to a temporary name in the same folder, synced to the disk and renamed.
//! A reader, or a run that was killed and started again, never meets half a file. This is not a lock:
//! of two writers of the same name the last one wins, each with a complete file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const TEMPORARY_SUFFIX: &str = ".deme.tmp";

/// Writes `path` through `write`, so that it appears complete or not at all.
///
/// The parent folder must exist. An existing file is replaced by the rename; readers that hold the old
/// one open or mapped keep the old bytes.
///
/// # Errors
/// Whatever `write`, the sync or the rename returns (a full disk among them). The temporary file is then
/// removed and what stood at `path` before still stands.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let file = AtomicFile::create(path)?;
    let mut writer = BufWriter::with_capacity(1 << 20, file.file.try_clone()?);
    write(&mut writer)?;
    writer.flush()?;
    file.commit()
}

/// A file under its temporary name. Dropped without [`Self::commit`] it is removed.
pub(crate) struct AtomicFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    committed: bool,
}

impl AtomicFile {
    /// An empty file beside `path`, in a folder that must exist.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let temporary = temporary_path(path)?;
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        Ok(Self { file, temporary, path: path.to_owned(), committed: false })
    }

    /// Writes at a position, in bytes from the start. Several threads may do so at once.
    #[cfg(unix)]
    pub(crate) fn write_at(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, bytes, position)
    }

    /// Writes at a position, in bytes from the start. Several threads may do so at once.
    #[cfg(windows)]
    pub(crate) fn write_at(&self, mut position: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = std::os::windows::fs::FileExt::seek_write(&self.file, bytes, position)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            position += written as u64;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// A second handle on the same file, for syncing it while it is written.
    pub(crate) fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Syncs the file to the disk and gives it its name.
    pub(crate) fn commit(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.temporary, &self.path)?;
        self.committed = true;
        sync_folder(&self.path)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // The first error is the one worth telling.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Removes the temporary files that killed writers left in `folder` (not in its subfolders).
///
/// Call it only while nobody else writes there, for example under a run folder's lock.
/// Returns how many files were removed.
///
/// # Errors
/// When the folder cannot be read or a left-over file cannot be removed.
pub fn remove_leftovers(folder: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(TEMPORARY_SUFFIX) && entry.file_type()?.is_file()
        {
            fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// The rename itself must survive a power cut too. Only Unix lets one sync a folder.
fn sync_folder(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(folder_of(path))?.sync_all()?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn temporary_path(path: &Path) -> io::Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no file", path.display()))
    })?;
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    Ok(folder_of(path)
        .join(format!(".{}.{process}-{number}{TEMPORARY_SUFFIX}", name.to_string_lossy())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_the_old_file_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_atomically(&path, |w| w.write_all(b"one")).unwrap();
        write_atomically(&path, |w| w.write_all(b"two")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    fn a_failing_writer_keeps_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_atomically(&path, |w| w.write_all(b"one")).unwrap();
        let error = write_atomically(&path, |w| {
            w.write_all(b"half of tw")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    fn a_path_without_a_file_name_is_refused() {
        let error = write_atomically(Path::new("/"), |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn leftovers_of_killed_writers_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let killed = temporary_path(&folder.path().join("a.txt")).unwrap();
        fs::write(&killed, b"half").unwrap();
        fs::write(folder.path().join("notes.tmp"), b"mine").unwrap();
        assert_eq!(remove_leftovers(folder.path()).unwrap(), 1);
        assert_eq!(names(folder.path()), ["notes.tmp"]);
    }
}
