//! Arguments that several verbs take, how they are parsed, and how the store they name is opened.

use std::error::Error as StdError;
use std::path::Path;
use std::str::FromStr;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::console::Console;
use crate::error::{Error, Result};
use cellql_model::Device;
use cellql_store::Store;

/// Heading of options that say which cells are used.
pub(super) const CELLS: &str = "Cells";
/// Heading of options that say where and how the work runs.
pub(super) const EXECUTION: &str = "Execution";
/// Heading of options about results.
pub(super) const OUTPUT: &str = "Output";

/// A store that is only read.
#[derive(Debug, Args)]
pub(super) struct ReadArgs {
    /// Store: a directory
    pub(super) store: String,
    /// Read this version of the store instead of the newest; `cellql versions` lists them
    #[arg(long, value_name = "VERSION")]
    pub(super) at_version: Option<u64>,
}

impl ReadArgs {
    /// Opens the store at the version that is asked for.
    ///
    /// # Errors
    /// There is no such store or version, or it cannot be read.
    pub(super) async fn open(&self) -> Result<Store> {
        match self.at_version {
            Some(version) => Ok(Store::open_at(&self.store, version).await?),
            None => Ok(Store::open(&self.store).await?),
        }
    }
}

/// Opens a store to change it. Changes wait for other writers, and say so on the console.
///
/// # Errors
/// There is no such store, or it cannot be read.
pub(super) async fn open_to_write(uri: &str, console: &Console) -> Result<Store> {
    Ok(Store::open(uri).await?.patient(console.waiting(uri)))
}

/// The device that runs models.
#[derive(Debug, Args)]
pub(super) struct DeviceArgs {
    /// Device that runs the model: cpu; in a build with CUDA also cuda, cuda:1, ...
    #[arg(long, default_value = "cpu", help_heading = EXECUTION)]
    pub(super) device: Device,
}

/// A parser of words that a type reads with [`FromStr`]. Help and completion list the words.
pub(super) fn one_of<T>(words: impl IntoIterator<Item = &'static str>) -> impl TypedValueParser<Value = T>
where
    T: FromStr + Clone + Send + Sync + 'static,
    T::Err: Into<Box<dyn StdError + Send + Sync>>,
{
    PossibleValuesParser::new(words).try_map(|word| word.parse::<T>())
}

/// Parses `NAME=VALUE`.
pub(super) fn name_and_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("expected NAME=VALUE, not '{text}'"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Parses an amount of memory: `512MB`, `2GB`, `1000000`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("expected an amount of memory such as 512MB or 2GB, not '{text}'");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KB" => 1_000,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let number: f64 = digits.parse().map_err(|_| wrong())?;
    Ok((number * f64::from(unit)) as u64)
}

/// Fails if a file cannot be written at a path, before any work. What is in the file stays. `object` is what will be
/// written, and `option` that which named the path.
pub(super) fn check_writable(path: &Path, object: &str, option: &str) -> Result<()> {
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
    opened.map(drop).map_err(|e| Error::input(path, object, format!("cannot be written: {e}; give another {option}")))
}

/// Fails if a picture cannot be written at the path of `--picture`, before any work.
pub(super) fn check_picture(path: &Path) -> Result<()> {
    if path.extension().is_none_or(|ending| !ending.eq_ignore_ascii_case("svg")) {
        return Err(Error::input(path, "picture", "pictures are SVG files; give --picture a name that ends in .svg"));
    }
    check_writable(path, "picture", "--picture")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_memory_have_decimal_units() {
        assert_eq!(bytes("512MB"), Ok(512_000_000));
        assert_eq!(bytes("1.5g"), Ok(1_500_000_000));
        assert_eq!(bytes("1000"), Ok(1000));
        assert!(bytes("2 miles").is_err() && bytes("GB").is_err());
    }
}
