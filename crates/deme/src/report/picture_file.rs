//! PNG files as the report carries them: read whole, checked, turned into data URIs.

use std::fs;
use std::path::Path;

use super::ReportError;

const SIGNATURE: [u8; 8] = [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a];

/// The bytes of a PNG file with the size its header states, in pixels.
pub(super) struct PictureFile {
    pub(super) bytes: Vec<u8>,
    pub(super) width: u32,
    pub(super) height: u32,
}

impl PictureFile {
    /// Reads a PNG file.
    ///
    /// # Errors
    /// [`ReportError::UnreadablePicture`] and [`ReportError::NotAPng`].
    pub(super) fn read(path: &Path) -> Result<Self, ReportError> {
        let bytes = fs::read(path).map_err(|source| ReportError::UnreadablePicture {
            path: path.to_path_buf(),
            source,
        })?;
        // Signature, then the header chunk: length, "IHDR", width, height.
        let (width, height) = match (bytes.get(..8), bytes.get(12..16), bytes.get(16..24)) {
            (Some(signature), Some(b"IHDR"), Some(size)) if signature == SIGNATURE => (
                u32::from_be_bytes([size[0], size[1], size[2], size[3]]),
                u32::from_be_bytes([size[4], size[5], size[6], size[7]]),
            ),
            _ => {
                return Err(ReportError::NotAPng { path: path.to_path_buf() });
            }
        };
        Ok(Self { bytes, width, height })
    }

    /// `data:image/png;base64,...`
    pub(super) fn data_uri(&self) -> String {
        format!("data:image/png;base64,{}", base64(&self.bytes))
    }
}

/// Base64 with padding, RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut bits = 0_u32;
        for place in 0..3 {
            bits = bits << 8 | u32::from(group.get(place).copied().unwrap_or_default());
        }
        for place in 0..4 {
            if place <= group.len() {
                let digit = (bits >> (18 - 6 * place)) & 63;
                text.push(char::from(DIGITS[digit as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn base64_gives_the_vectors_of_the_standard() {
        let pairs = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, encoded) in pairs {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn a_missing_picture_and_a_text_file_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.png");
        let error = PictureFile::read(&missing).err().unwrap();
        assert!(matches!(error, ReportError::UnreadablePicture { .. }));
        assert!(error.to_string().contains("missing.png"));

        let text = folder.path().join("text.png");
        fs::write(&text, "not a picture").unwrap();
        let error = PictureFile::read(&text).err().unwrap();
        assert!(matches!(error, ReportError::NotAPng { .. }));
        assert!(error.to_string().contains("text.png"));
    }
}
