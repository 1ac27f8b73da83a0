//! What the configs of all networks share: diffusers' `config.json` read field by field, and what can be
//! wrong with it.
//!
//! A field that diffusers knows and that is not implemented here may stand at the value that means "off"; any
//! other value is an error that names the field. Nothing is ignored silently. Not here: the fields themselves.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The version of diffusers whose format is written.
pub(crate) const DIFFUSERS_VERSION: &str = "0.42.1";

/// Whose config it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Network {
    /// For errors: `UNet`, `VAE`.
    pub name: &'static str,
    /// diffusers' `_class_name`.
    pub class: &'static str,
    /// Fields that must be off.
    pub off: &'static [OnlyAt],
}

/// A field of diffusers that is refused unless it has one of the values that switch it off. The first is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OnlyAt(pub &'static str, pub &'static [Off]);

/// A value that means "off".
#[derive(Debug, Clone, Copy)]
pub(crate) enum Off {
    Null,
    False,
    Number(f64),
    Text(&'static str),
}

impl Off {
    fn is(self, value: &Value) -> bool {
        match self {
            Self::Null => value.is_null(),
            Self::False => *value == Value::Bool(false),
            Self::Number(number) => value.as_f64() == Some(number),
            Self::Text(text) => value == text,
        }
    }

    fn value(self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::False => false.into(),
            Self::Number(number) if number.fract() == 0.0 => (number as i64).into(),
            Self::Number(number) => number.into(),
            Self::Text(text) => text.into(),
        }
    }
}

impl Network {
    /// Reads `config.json`. Keys that begin with `_` are notes and are skipped.
    ///
    /// # Errors
    /// [`ModelConfigError`] for text that is no JSON object, another class, an unknown field, a value of the
    /// wrong kind, and a field that must be off and is not.
    pub fn read<T: DeserializeOwned>(&self, text: &str) -> Result<T, ModelConfigError> {
        let fields: Map<String, Value> = serde_json::from_str(text)
            .map_err(|source| ModelConfigError::Json { network: self.name, source })?;
        if let Some(class) = fields.get("_class_name").filter(|class| *class != self.class) {
            return Err(ModelConfigError::Class { expected: self.class, found: plain(class) });
        }
        let mut fields: Map<String, Value> =
            fields.into_iter().filter(|(name, _)| !name.starts_with('_')).collect();
        for OnlyAt(field, values) in self.off {
            let Some(found) = fields.shift_remove(*field) else { continue };
            if !values.iter().any(|off| off.is(&found)) {
                let supported = values.iter().map(|off| off.value().to_string());
                let supported = supported.collect::<Vec<_>>().join(", ");
                return Err(self.unsupported(field, found.to_string(), supported));
            }
        }
        serde_json::from_value(Value::Object(fields.clone()))
            .map_err(|source| self.field_error::<T>(fields, source))
    }

    /// `config.json` as diffusers writes it.
    pub fn write<T: Serialize>(&self, config: &T) -> String {
        let mut fields = Map::new();
        fields.insert("_class_name".into(), self.class.into());
        fields.insert("_diffusers_version".into(), DIFFUSERS_VERSION.into());
        match serde_json::to_value(config) {
            Ok(Value::Object(own)) => fields.extend(own),
            other => unreachable!("a struct of plain fields is a JSON object, not {other:?}"),
        }
        let off = self.off.iter().map(|OnlyAt(field, values)| (*field, values[0].value()));
        fields.extend(off.map(|(field, value)| (field.to_owned(), value)));
        let mut text = serde_json::to_string_pretty(&Value::Object(fields))
            .expect("a JSON value can always be written");
        text.push('\n');
        text
    }

    /// serde names no field when a value does not fit: find the field whose value alone does not.
    fn field_error<T: DeserializeOwned>(
        &self,
        fields: Map<String, Value>,
        source: serde_json::Error,
    ) -> ModelConfigError {
        let network = self.name;
        for (name, value) in fields {
            let alone = Value::Object(Map::from_iter([(name.clone(), value)]));
            if let Err(source) = serde_json::from_value::<T>(alone) {
                return ModelConfigError::Field { network, field: name, source };
            }
        }
        ModelConfigError::Json { network, source }
    }

    /// A text field must be one of those implemented.
    pub fn only(
        &self,
        field: &'static str,
        found: &str,
        supported: &[&str],
    ) -> Result<(), ModelConfigError> {
        if supported.contains(&found) {
            return Ok(());
        }
        let supported = supported.iter().map(|s| format!("`{s}`")).collect::<Vec<_>>().join(", ");
        Err(self.unsupported(field, format!("`{found}`"), supported))
    }

    /// Every value must be 1 or more.
    pub fn nonzero(
        &self,
        values: impl IntoIterator<Item = (&'static str, usize)>,
    ) -> Result<(), ModelConfigError> {
        match values.into_iter().find(|(_, value)| *value == 0) {
            Some((field, _)) => {
                Err(self.invalid(field, "holds a zero; the smallest value is 1".into()))
            }
            None => Ok(()),
        }
    }

    /// Groups must divide the channels of every norm.
    pub fn groups(
        &self,
        field: &'static str,
        groups: usize,
        channels: impl IntoIterator<Item = usize>,
    ) -> Result<(), ModelConfigError> {
        match channels.into_iter().find(|channels| channels % groups != 0) {
            Some(channels) => Err(self.invalid(
                field,
                format!(
                    "is {groups}, which does not divide the {channels} channels of a group norm"
                ),
            )),
            None => Ok(()),
        }
    }

    pub fn unsupported(
        &self,
        field: &'static str,
        found: String,
        supported: String,
    ) -> ModelConfigError {
        ModelConfigError::Unsupported { network: self.name, field, found, supported }
    }

    pub fn invalid(&self, field: &'static str, reason: String) -> ModelConfigError {
        ModelConfigError::Invalid { network: self.name, field, reason }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Why a config describes no network we can build.
#[derive(Debug, thiserror::Error)]
pub enum ModelConfigError {
    /// Not a JSON object.
    #[error("the {network} config is no JSON object: {source}")]
    Json {
        /// The network.
        network: &'static str,
        /// What serde_json found.
        source: serde_json::Error,
    },
    /// The config of another network.
    #[error("this is the config of a `{found}`; only `{expected}` can be loaded here")]
    Class {
        /// The class that can be loaded.
        expected: &'static str,
        /// The class it names.
        found: String,
    },
    /// An unknown field, or a value of the wrong kind.
    #[error("`{field}` in the {network} config: {source}")]
    Field {
        /// The network.
        network: &'static str,
        /// The field.
        field: String,
        /// What serde_json found; it lists what is known.
        source: serde_json::Error,
    },
    /// A value that diffusers knows and that is not implemented here.
    #[error(
        "`{field}` in the {network} config is {found}, which is not supported; supported: {supported}"
    )]
    Unsupported {
        /// The network.
        network: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// The values that work.
        supported: String,
    },
    /// A value that makes no network.
    #[error("`{field}` in the {network} config {reason}")]
    Invalid {
        /// The network.
        network: &'static str,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Images that do not fit the network.
    #[error("images of shape [C, H, W] = {found:?} do not fit: {reason}")]
    ImageShape {
        /// `[C, H, W]`.
        found: [usize; 3],
        /// Which shapes fit.
        reason: String,
    },
}
