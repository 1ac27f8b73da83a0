//! What the user says a plan's words mean: `--bind "words=meaning"`.

use std::cell::Cell;

use super::AblationError;

/// Words of a plan with their meaning: a part's id, a replacement the part can read, a metric of the run, or
/// `none` for a metric that is left out.
#[derive(Debug, Default)]
pub struct Bindings {
    pairs: Vec<Binding>,
}

#[derive(Debug)]
struct Binding {
    text: String,
    word: String,
    used: Cell<bool>,
}

impl Bindings {
    /// Reads the entries. The meaning stands behind the last `=`: the words may hold some.
    ///
    /// # Errors
    /// [`AblationError::BadBind`].
    pub fn read(entries: &[String]) -> Result<Self, AblationError> {
        let pairs = entries.iter().map(|entry| {
            let (text, word) = entry
                .rsplit_once('=')
                .ok_or_else(|| AblationError::BadBind { text: entry.clone() })?;
            let (text, word) = (text.trim().to_owned(), word.trim().to_owned());
            Ok(Binding { text, word, used: Cell::new(false) })
        });
        Ok(Self { pairs: pairs.collect::<Result<_, _>>()? })
    }

    /// What these words mean, where the user has said it.
    pub fn meaning(&self, text: &str) -> Option<&str> {
        let found = self.pairs.iter().find(|pair| pair.text.eq_ignore_ascii_case(text.trim()))?;
        found.used.set(true);
        Some(&found.word)
    }

    /// Refuses bindings of words that nothing asked for.
    ///
    /// # Errors
    /// [`AblationError::UnusedBind`].
    pub fn check_used(&self) -> Result<(), AblationError> {
        match self.pairs.iter().find(|pair| !pair.used.get()) {
            Some(unused) => Err(AblationError::UnusedBind { text: unused.text.clone() }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn bindings(entries: &[&str]) -> Result<Bindings, AblationError> {
        Bindings::read(&entries.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_words_may_hold_equal_signs_and_capitals_do_not_matter() {
        let bindings = bindings(&["Uniform (w_i = 1/N)=uniform"]).unwrap();
        assert!(matches!(bindings.check_used(), Err(AblationError::UnusedBind { .. })));
        assert_eq!(bindings.meaning("uniform (w_i = 1/n) "), Some("uniform"));
        assert_eq!(bindings.meaning("uniform"), None);
        bindings.check_used().unwrap();
    }

    #[test]
    fn a_binding_without_a_meaning_is_refused() {
        assert!(matches!(bindings(&["words"]), Err(AblationError::BadBind { .. })));
    }
}
