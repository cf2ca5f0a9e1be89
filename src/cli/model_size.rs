//! `--size` of a new model: one of the paper's sizes, or a JSON file of dimensions.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};
use cellql_model::{Config, Size};

/// Size of a new model, as a command line gives it.
#[derive(Debug, Clone)]
pub(super) enum ModelSize {
    /// A size of the paper: `3M`, `10M`, `100M`.
    Named(Size),
    /// A JSON file of dimensions. Those that it leaves out are taken from `3M`.
    File(PathBuf),
}

impl FromStr for ModelSize {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.parse() {
            Ok(size) => Ok(Self::Named(size)),
            Err(_) if Path::new(text).is_file() => Ok(Self::File(text.into())),
            Err(problem) => Err(format!("{problem}, or a JSON file of sizes")),
        }
    }
}

impl ModelSize {
    /// The configuration of a model of this size with a vocabulary of `genes` genes.
    ///
    /// # Errors
    /// [`Error::Input`]: the file cannot be read, or gives a dimension that does not exist or makes no sense.
    pub(super) fn config(&self, genes: usize) -> Result<Config> {
        let path = match self {
            Self::Named(size) => return Ok(Config::of_size(*size, genes)),
            Self::File(path) => path,
        };
        let wrong = |e: &dyn std::fmt::Display| Error::input(path, "sizes", e);
        let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
        let given: serde_json::Value = serde_json::from_str(&text).map_err(|e| wrong(&e))?;
        if !given.is_object() {
            return Err(wrong(&"expected a JSON object of sizes, such as {\"encoder\": {\"depth\": 2}}"));
        }
        let mut config = serde_json::to_value(Config::of_size(Size::M3, genes)).map_err(|e| wrong(&e))?;
        merge(&mut config, given).map_err(|unknown| wrong(&format!("there is no size '{unknown}'")))?;
        config["seq_len"] = (genes + 2).into();
        Config::from_json(config).map_err(|e| wrong(&e))
    }
}

/// Overwrites values of `to` with those of the same names in `from`. The error is a name that `to` does not have.
fn merge(to: &mut serde_json::Value, from: serde_json::Value) -> std::result::Result<(), String> {
    let serde_json::Value::Object(from) = from else {
        *to = from;
        return Ok(());
    };
    from.into_iter().try_for_each(|(name, value)| merge(to.get_mut(&name).ok_or(name)?, value))
}
