//! Files of every format with random damage from a seed: each is refused with its file and object named, or yields
//! consistent cells. No reader panics, hangs, or allocates a length that a damaged file claims.
//!
//! The files are read in a process with limited memory, which an oversized allocation would abort.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use arrow::array::Array;
use cellql_formats::{CellSource, OpenOptions, inputs, open};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::fixtures::made;
use crate::stores::{python, say};

/// Address space of the process, in kilobytes.
const MEMORY: u64 = 6 << 20;
/// Damaged copies of each file.
const ROUNDS: u64 = 60;
/// The longest that one may take.
const PATIENCE: Duration = Duration::from_secs(30);
const FOLDER: &str = "CELLQL_MUTATIONS";

#[test]
fn damage_is_told_or_harmless_in_every_format() {
    let Some(python) = python() else { return };
    let made = made(&python);
    let limited = format!("ulimit -v {MEMORY}; exec \"$0\" \"$@\"");
    let run = Command::new("sh")
        .arg("-c")
        .arg(limited)
        .arg(std::env::current_exe().unwrap())
        .args(["mutations::all_damage", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(FOLDER, made)
        .output()
        .unwrap();
    let talk = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    let tail: String = talk.lines().rev().take(30).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
    assert!(run.status.success(), "{tail}");
    say(talk.lines().find(|l| l.starts_with("damaged")).unwrap_or_default());
}

#[test]
#[ignore = "run by the test above, in a process of limited memory"]
fn all_damage() {
    let Some(made) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let is_real = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("real_");
    let names = std::fs::read_dir(&made).unwrap().map(|e| e.unwrap().path());
    let mut names: Vec<PathBuf> = names.filter(|path| !is_real(path)).collect();
    names.sort();
    let (mut refused, mut read) = (0, 0);
    for (number, folder) in names.iter().filter(|p| p.is_dir() && p.extension().is_none()).enumerate() {
        let (found, _) = inputs(folder).unwrap();
        let whole = std::fs::read(&found[0]).unwrap();
        for round in 0..ROUNDS {
            let mut rng = ChaCha8Rng::seed_from_u64(number as u64 * 1000 + round);
            let name = found[0].file_name().unwrap();
            match with_patience(folder, name.as_ref(), damaged(&whole, &mut rng), round) {
                Ok(()) => read += 1,
                Err(()) => refused += 1,
            }
        }
    }
    println!("damaged files: {refused} refused, {read} read whole");
    assert!(refused > read / 4, "damage that is never noticed tests nothing");
}

fn damaged(whole: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    let place = |rng: &mut ChaCha8Rng, len: usize| {
        // Most of the structure lies at the beginning, or at the end where a format keeps it there.
        let near = len.min(4096);
        match rng.random_range(0..3) {
            0 => rng.random_range(0..near),
            1 => len - 1 - rng.random_range(0..near),
            _ => rng.random_range(0..len),
        }
    };
    match rng.random_range(0..6) {
        0 => bytes.truncate(place(rng, whole.len())),
        1 => {
            let at = place(rng, bytes.len());
            let word: u64 = if rng.random_bool(0.5) { u64::MAX >> rng.random_range(0..40) } else { rng.random() };
            let end = (at + 8).min(bytes.len());
            bytes[at..end].copy_from_slice(&word.to_le_bytes()[..end - at]);
        }
        2 => {
            let (from, to) = (place(rng, bytes.len()), place(rng, bytes.len()));
            let count = 64.min(bytes.len() - from.max(to));
            bytes.copy_within(from..from + count, to);
        }
        3 => {
            let at = place(rng, bytes.len());
            bytes.splice(at..at, b"999999999999".iter().copied());
        }
        _ => {
            for _ in 0..1 << rng.random_range(0..6) {
                let at = place(rng, bytes.len());
                bytes[at] = rng.random();
            }
        }
    }
    bytes
}

/// Reads a damaged copy on a thread of its own, and fails where that does not end.
fn with_patience(folder: &Path, name: &Path, bytes: Vec<u8>, round: u64) -> Result<(), ()> {
    let place = tempfile::tempdir().unwrap();
    for beside in std::fs::read_dir(folder).unwrap() {
        let beside = beside.unwrap().path();
        std::fs::copy(&beside, place.path().join(beside.file_name().unwrap())).unwrap();
    }
    let file = place.path().join(name);
    std::fs::write(&file, bytes).unwrap();
    let list = |what: &str| Some(PathBuf::from(format!("{}.{what}.txt", folder.display()))).filter(|p| p.exists());
    let options = OpenOptions { genes: list("genes"), barcodes: list("barcodes"), ..OpenOptions::default() };
    let (done, outcome) = mpsc::channel();
    let path = file.clone();
    let reader = std::thread::spawn(move || {
        let result = open(&path, &options).and_then(|mut source| drain(source.as_mut()));
        let _ = done.send(());
        result
    });
    let told = || format!("{}, round {round}", folder.display());
    assert!(
        outcome.recv_timeout(PATIENCE) != Err(mpsc::RecvTimeoutError::Timeout),
        "{}: still reading after {PATIENCE:?}",
        told()
    );
    match reader.join() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            let text = error.to_string();
            assert!(text.contains(place.path().to_str().unwrap()) || text.contains(".txt"), "{}: {text}", told());
            assert!(!error.object.is_empty() && !error.problem.is_empty(), "{}: {text}", told());
            Err(())
        }
        Err(_) => panic!("{}: the reader panicked", told()),
    }
}

fn drain(source: &mut dyn CellSource) -> cellql_formats::Result<()> {
    let features = source.features().len();
    while let Some(block) = source.next_block()? {
        assert_eq!(block.barcodes.len(), block.len());
        assert_eq!(block.starts.last(), Some(&block.values.len()));
        assert!(block.features.iter().all(|f| (*f as usize) < features));
        assert!(block.obs.iter().all(|c| c.len() == block.len()));
    }
    Ok(())
}
