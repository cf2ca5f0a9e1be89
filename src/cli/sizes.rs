//! `--size`: a name of the paper's, or a file of one's own sizes.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};
use cellql_model::{Config, Size};

/// Sizes of a new model, as a command line names them.
#[derive(Debug, Clone)]
pub(super) enum Sizes {
    /// The paper's.
    Named(Size),
    /// A JSON file; what it leaves out is as in the smallest.
    File(PathBuf),
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.parse() {
            Ok(size) => Ok(Self::Named(size)),
            Err(_) if Path::new(text).is_file() => Ok(Self::File(text.into())),
            Err(problem) => Err(format!("{problem}, or a JSON file of sizes")),
        }
    }
}

impl Sizes {
    /// The configuration for a vocabulary.
    pub(super) fn config(&self, genes: usize) -> Result<Config> {
        let path = match self {
            Self::Named(size) => return Ok(Config::of_size(*size, genes)),
            Self::File(path) => path,
        };
        let wrong = |e: &dyn std::fmt::Display| Error::input(path, "sizes", e);
        let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
        let given: serde_json::Value = serde_json::from_str(&text).map_err(|e| wrong(&e))?;
        if !given.is_object() {
            return Err(wrong(&"it must be an object of sizes, as {\"encoder\": {\"depth\": 2}}"));
        }
        let mut config = serde_json::to_value(Config::of_size(Size::M3, genes)).map_err(|e| wrong(&e))?;
        put_over(&mut config, given).map_err(|unknown| wrong(&format!("there is no size '{unknown}'")))?;
        config["seq_len"] = (genes + 2).into();
        Config::from_json(config).map_err(|e| wrong(&e))
    }
}

/// Puts values over those of the same names; gives a name that is not there.
fn put_over(to: &mut serde_json::Value, from: serde_json::Value) -> std::result::Result<(), String> {
    let serde_json::Value::Object(from) = from else {
        *to = from;
        return Ok(());
    };
    from.into_iter().try_for_each(|(name, value)| {
        let known = to.get_mut(&name).ok_or(name)?;
        put_over(known, value)
    })
}
