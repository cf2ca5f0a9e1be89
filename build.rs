//! Tells the program which commit it is built from, so that a trained model can say what trained it.

use std::process::Command;

fn main() {
    // A commit moves a branch, and with it what HEAD's log says; without git there is nothing to watch.
    println!("cargo:rerun-if-changed=build.rs");
    if std::path::Path::new(".git/logs/HEAD").exists() {
        println!("cargo:rerun-if-changed=.git/logs/HEAD");
    }
    let described = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output();
    let commit = described.ok().filter(|out| out.status.success()).and_then(|out| String::from_utf8(out.stdout).ok());
    let commit = commit.map_or_else(|| "of no known commit".to_owned(), |commit| format!("commit {}", commit.trim()));
    println!("cargo:rustc-env=CELLQL_COMMIT={commit}");
}
