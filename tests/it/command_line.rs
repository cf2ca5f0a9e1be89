//! The program from outside: exit codes, what goes where, and the way from files to neighbours.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::stores::{demo_file, reference, root, say};

fn cellql(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cellql")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn done(args: &[&str]) -> (String, String) {
    let out = cellql(args);
    assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
    (text(&out.stdout), text(&out.stderr))
}

fn path(of: &Path) -> &str {
    of.to_str().unwrap()
}

#[test]
fn from_counts_and_a_checkpoint_to_neighbours() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("my store");
    let store = path(&store);
    done(&["init", store]);
    let (out, err) = done(&["ingest", store, path(&demo_file())]);
    assert!(out.is_empty() && err.contains("320 of 320 cells kept") && err.contains("approved symbol"), "{err}");
    let (checkpoint, genes) = (reference("models.ckpt"), reference("gene_index.tsv"));
    let import =
        ["model", "import", store, path(&checkpoint), "--genes", path(&genes), "--key", "rde", "--name", "tiny"];
    let (_, err) = done(&import);
    assert!(err.contains("300 genes") && err.contains("non-commercial"), "{err}");
    let (_, err) = done(&["index", "build", store, "--model", "tiny"]);
    assert!(err.contains("320 vectors of dimension 192"), "{err}");
    let (out, _) = done(&["search", store, "--cell", "4", "-k", "3", "--format", "csv", "--columns", "cell_type"]);
    assert_eq!(out.lines().count(), 4, "{out}");
    assert!(out.starts_with("cell_id,_distance,cell_type\n"), "{out}");
    let (_, err) = done(&["index", "build", store, "--on", "cells", "--model", "tiny"]);
    assert!(err.contains("0 cells added") && err.contains("320 were already there"), "{err}");

    let sql = "SELECT cell_id, embed(expr, pool => 'max') AS v FROM cells ORDER BY cell_id LIMIT 2";
    let (out, _) = done(&["sql", store, "-c", sql, "--format", "ndjson"]);
    assert_eq!(out.lines().count(), 2);
    assert!(out.starts_with("{\"cell_id\":0,\"v\":["), "{out}");
    for format in ["table", "csv", "parquet", "arrow"] {
        let out = cellql(&["sql", store, "-c", sql, "--format", format]);
        assert!(out.status.success() && !out.stdout.is_empty(), "{format}: {}", text(&out.stderr));
    }
    let (out, _) = done(&["info", store]);
    assert!(out.contains("baron_pancreas") && out.contains("tiny"), "{out}");
}

#[test]
fn untrained_weights_are_called_so_wherever_they_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let store = path(&store);
    done(&["init", store]);
    let counts = reference("counts.csv");
    done(&["ingest", store, path(&counts), "--min-genes", "0"]);
    let (_, err) = done(&["model", "init", store, "--size", "3M", "--seed", "0", "--name", "fresh"]);
    assert!(err.contains("(untrained)"), "{err}");
    let (_, err) = done(&["sql", store, "-c", "SELECT embed(expr) FROM cells"]);
    assert!(err.contains("untrained weights"), "{err}");
    let (_, err) = done(&["embed", store]);
    assert!(err.contains("untrained weights"), "{err}");
    let (out, _) = done(&["model", "list", store, "--format", "csv"]);
    assert!(out.contains("false") && out.contains("untrained"), "{out}");
}

#[test]
fn failures_have_their_exit_codes_and_name_their_object() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let store = path(&store);
    let fails = |args: &[&str], code: i32, word: &str| {
        let out = cellql(args);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {}", text(&out.stderr));
        assert!(text(&out.stderr).contains(word), "{args:?}: {}", text(&out.stderr));
        assert!(out.stdout.is_empty(), "{args:?}");
    };
    fails(&["sql", store, "-c", "SELECT 1"], 1, "cellql init");
    done(&["init", store, "--no-model"]);
    fails(&["init", store], 1, "already holds");
    fails(&["sql", store, "-c", "SELECT embed(expr) FROM cells"], 1, "no model");
    fails(&["search", store, "--cell", "1"], 1, "no embeddings");
    fails(&["ingest", store, "/no/such.h5ad"], 1, "/no/such.h5ad");
    fails(&["frobnicate"], 2, "frobnicate");
    fails(&["model", "init", store, "--size", "5M", "--name", "x"], 2, "3M, 10M, 100M");
    let checkpoint = reference("models.ckpt");
    fails(&["model", "import", store, path(&checkpoint), "--name", "x"], 1, "--genes");
    fails(&["model", "init", store, "--size", "3M", "--name", "a b"], 1, "'a b'");
    fails(&["search", store, "--cell", "AAAC-1"], 2, "WHERE barcode = 'AAAC-1'");
    fails(&["embed", store, "--pool", "mean"], 2, "[possible values: all, max]");
    fails(&["embed", store, "--memory", "much"], 2, "512MB");
}

#[test]
fn a_store_over_time_from_outside() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let store = at("store");
    done(&["init", &store, "--no-model"]);
    std::fs::write(at("one.csv"), "cell,INS,GCG,1-Mar\na,1,2,0\nb,3,4,1\n").unwrap();
    std::fs::write(at("two.csv"), "cell,INS,GCG\nb2,3,4\nc,5,6\n").unwrap();
    let report = at("report.json");
    let (_, err) = done(&["ingest", &store, &at("one.csv"), &at("two.csv"), "--min-genes", "0", "--report", &report]);
    assert!(err.contains("1-Mar → MARCHF1, MTARC1"), "{err}");
    let reports: serde_json::Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!(reports[0]["genes"]["ambiguous"][0]["name"], "1-Mar");
    assert_eq!(reports[1]["cells_kept"], 2);
    let (out, _) = done(&["versions", &store, "--format", "csv"]);
    assert_eq!(out.lines().count(), 4, "{out}");
    assert!(out.contains("one.csv") && out.contains("two.csv"), "{out}");
    let count = ["-c", "SELECT count(*) AS n FROM cells", "--format", "csv"];
    let (out, _) = done(&[&["sql", &store, "--at-version", "2"][..], &count].concat());
    assert_eq!(out, "n\n2\n");
    let (out, _) = done(&["dataset", "list", &store, "--format", "csv"]);
    assert!(out.lines().count() == 3 && out.contains("genes"), "{out}");

    let out_file = at("out.h5ad");
    let (_, err) = done(&["export", &store, &out_file, "--where", "barcode = 'c'"]);
    assert!(err.contains("1 cells, 2 genes"), "{err}");
    let again = cellql(&["export", &store, &out_file]);
    assert!(again.status.code() == Some(1) && text(&again.stderr).contains(&out_file));
    let nothing = cellql(&["export", &store, &at("x.h5ad"), "--where", "barcode = 'q'"]);
    assert!(nothing.status.code() == Some(1) && text(&nothing.stderr).contains("no cell satisfies"));
    let unclear = cellql(&["export", &store, &at("x.txt")]);
    assert!(unclear.status.code() == Some(1) && text(&unclear.stderr).contains(".parquet"));

    let (_, err) = done(&["dataset", "remove", &store, "two"]);
    assert!(err.contains("with 2 cells is removed"), "{err}");
    let (_, err) = done(&["compact", &store, "--keep", "1"]);
    assert!(err.contains("deleted 4 versions"), "{err}");
    let (out, _) = done(&[&["sql", &store][..], &count].concat());
    assert_eq!(out, "n\n2\n");
    let gone = cellql(&["info", &store, "--at-version", "2"]);
    assert!(gone.status.code() == Some(1) && text(&gone.stderr).contains("no version 2"));
}

/// A store of two cells.
fn small_store(folder: &Path) -> String {
    let store = folder.join("store").to_str().unwrap().to_owned();
    done(&["init", &store, "--no-model"]);
    let file = folder.join("cells.csv");
    std::fs::write(&file, "cell,CXCL8,GCG\na,1,2\nb,3,4\n").unwrap();
    done(&["ingest", &store, path(&file), "--min-genes", "0"]);
    store
}

#[test]
fn a_script_runs_up_to_its_first_error() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let script = "SELECT 1 AS a;\nSELECT 2 AS b;\nSELECT barcod\nFROM cells;\nSELECT 4 AS d;";
    let out = cellql(&["sql", &store, "-c", script, "--format", "csv"]);
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(text(&out.stdout), "a\n1\nb\n2\n");
    let said = text(&out.stderr);
    assert!(said.contains("statement 3 (line 3)") && said.contains("'barcode'"), "{said}");
    assert!(said.contains("\n  SELECT barcod\n         ^"), "{said}");
    let out = cellql(&["sql", &store, "-c", "SELECT 1; SELECT 'never closed; SELECT 2"]);
    assert!(out.status.code() == Some(1) && text(&out.stdout).contains('1'), "{}", text(&out.stderr));
}

#[test]
fn parameters_have_the_types_of_their_spelling_and_go_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let sql = "SELECT barcode, $n + 1 AS n, $yes AS yes, $none IS NULL AS none, expression(expr, $gene) AS v \
               FROM cells WHERE barcode = $cell LIMIT $n";
    let values = ["n=2", "yes=true", "none=null", "gene=GCG", "cell=b"];
    let flags: Vec<&str> = values.iter().flat_map(|v| ["--param", v]).collect();
    let (out, _) = done(&[&["sql", &store, "-c", sql, "--format", "csv"], &flags[..]].concat());
    assert_eq!(out, "barcode,n,yes,none,v\nb,3,true,true,4.0\n");
    let out = cellql(&["sql", &store, "-c", "SELECT $cell", "--param", "cells=1"]);
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1));
    assert!(said.contains("--param cell=VALUE") && said.contains("'cells'") && said.contains("         ^"), "{said}");
    assert_eq!(cellql(&["sql", &store, "-c", "SELECT 1", "--param", "cell"]).status.code(), Some(2));
}

#[test]
fn formats_are_whole_also_without_rows() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let ask = |sql: &str, format: &str| done(&["sql", &store, "-c", sql, "--format", format, "--timing"]);
    let (out, err) = ask("SELECT barcode FROM cells WHERE false", "csv");
    assert_eq!(out, "barcode\n");
    assert!(err.contains("0 rows in"), "{err}");
    assert_eq!(ask("SELECT barcode FROM cells WHERE false", "ndjson").0, "");
    let (out, err) = ask("SELECT value FROM generate_series(1, 20000)", "ndjson");
    assert!(out.lines().count() == 20_000 && out.ends_with("{\"value\":20000}\n"), "{}", out.lines().count());
    assert!(err.contains("20000 rows in"), "{err}");
    // A table that is no terminal's has all its rows: a frame of four lines around them.
    assert_eq!(ask("SELECT value FROM generate_series(1, 3000)", "table").0.lines().count(), 3004);
    let (out, _) = done(&["sql", &store, "-c", "\\format csv\nSELECT 1 AS a;\n\\d genes"]);
    assert!(out.starts_with("a\n1\ncolumn,type\ngene_id,UInt32\n"), "{out}");
}

/// Runs a query, reads one byte of its result and closes the pipe; the exit status and what is on stderr.
fn closed_early(args: &[&str]) -> (Option<i32>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cellql"))
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let out = child.wait_with_output().unwrap();
    (out.status.code(), text(&out.stderr))
}

#[test]
fn a_reader_that_closes_the_pipe_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let sql = "SELECT value, md5(CAST(value AS VARCHAR)) AS digest FROM generate_series(1, 100000)";
    for format in ["csv", "ndjson", "table", "parquet", "arrow"] {
        let closed = closed_early(&["sql", &store, "-c", sql, "--format", format]);
        assert_eq!(closed, (Some(0), String::new()), "{format}");
    }
}

#[test]
fn tables_keep_to_a_hundred_columns_where_there_is_no_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    done(&["model", "add", &store]);
    let narrow = |args: &[&str]| {
        let (out, _) = done(args);
        assert!(out.lines().all(|line| line.chars().count() <= 100), "{args:?}\n{out}");
        out
    };
    assert!(narrow(&["info", &store]).contains("human_3m"));
    assert!(narrow(&["model", "list", &store]).contains("human_3m"));
    assert!(narrow(&["dataset", "list", &store]).contains("cells"));
    narrow(&["index", "list", &store]);
    narrow(&["model", "show", &store]);
    assert!(narrow(&["sql", &store, "-c", "SELECT * FROM models"]).starts_with("-[ row 1 ]-\nname "));
    let described = narrow(&["sql", &store, "-c", "\\d cells"]);
    assert!(
        described.contains("| Struct(gene_id: List(UInt32), value: List(Float32), dataset_ids: List(UInt32)) |"),
        "{described}"
    );
    let (all, _) = done(&["model", "list", &store, "--format", "csv"]);
    assert!(all.starts_with("name,kind,sha256,vocabulary_sha256,"), "{all}");
}

#[test]
fn control_characters_of_values_do_not_reach_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let sql = "SELECT 'a' || chr(27) || '[2J' AS x";
    let (out, _) = done(&["sql", &store, "-c", sql]);
    assert!(out.contains("a\\u{1b}[2J") && !out.contains('\u{1b}'), "{out}");
    let (out, _) = done(&["sql", &store, "-c", sql, "--format", "csv"]);
    assert_eq!(out, "x\na\u{1b}[2J\n");
}

#[test]
fn quiet_leaves_stderr_to_errors() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let store = path(&store);
    let counts = reference("counts.csv");
    for args in [&["init", store][..], &["ingest", store, path(&counts), "--min-genes", "0"], &["compact", store]] {
        let (out, err) = done(&[args, &["--quiet"]].concat());
        assert_eq!((out.as_str(), err.as_str()), ("", ""), "{args:?}");
    }
}

#[test]
fn statements_run_as_deeply_nested_as_the_limit_allows() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let repeated =
        |count: usize, term: &dyn Fn(usize) -> String, by: &str| (0..count).map(term).collect::<Vec<_>>().join(by);
    let condition = |terms: String| format!("SELECT count(*) FROM cells WHERE {terms}");
    let ors = |count| condition(repeated(count, &|i| format!("total_counts = {i}"), " OR "));
    let joins = repeated(30, &|i| format!("JOIN cells c{i} ON c{i}.cell_id = c.cell_id"), " ");
    let statements = [
        ors(131),
        condition(repeated(94, &|i| format!("total_counts <> {i}"), " AND ")),
        format!("SELECT count(*) FROM cells WHERE {} > 0", repeated(109, &|_| "total_counts".to_owned(), " + ")),
        repeated(90, &|_| "SELECT count(*) FROM cells".to_owned(), " UNION ALL "),
        format!("SELECT count(*) FROM cells c {joins}"),
    ];
    for statement in statements {
        let out = cellql(&["sql", &store, "-c", &statement, "--format", "csv"]);
        let start = &statement[..80];
        assert_eq!(out.status.code(), Some(0), "{start}: {}", text(&out.stderr));
    }
    let out = cellql(&["sql", &store, "-c", &ors(5000)]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("nested too deeply"), "{}", text(&out.stderr));
}

#[test]
fn two_processes_that_embed_at_once_leave_a_row_per_cell() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let store = path(&store);
    done(&["init", store, "--no-model"]);
    done(&["ingest", store, path(&demo_file())]);
    let (checkpoint, genes) = (reference("models.ckpt"), reference("gene_index.tsv"));
    done(&["model", "import", store, path(&checkpoint), "--genes", path(&genes), "--name", "tiny"]);
    for depth in ["t4", "t4.1", "t4.2"] {
        let start = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_cellql"));
            command.args(["embed", store, "--depth", depth, "--publish-every", "0"]);
            command.stderr(Stdio::piped()).spawn().unwrap()
        };
        let both = [start(), start()];
        for process in both {
            let out = process.wait_with_output().unwrap();
            assert!(out.status.success(), "{depth}: {}", text(&out.stderr));
        }
    }
    let (out, _) = done(&["sql", store, "-c", "SHOW TABLES", "--format", "csv"]);
    let tables: Vec<&str> = out.lines().filter_map(|l| l.split(',').find(|name| name.starts_with("tiny"))).collect();
    assert_eq!(tables.len(), 3, "{out}");
    for table in tables {
        let sql = format!("SELECT count(*), count(DISTINCT cell_id) FROM embeddings.\"{table}\"");
        let (out, _) = done(&["sql", store, "-c", &sql, "--format", "csv"]);
        assert_eq!(out.lines().last(), Some("320,320"), "{table}");
    }
}

/// Types and looks in a terminal; what it showed, or nothing without Python.
fn in_terminal(folder: &Path, steps: &serde_json::Value, args: &[&str], envs: &[(&str, &str)]) -> Option<String> {
    let file = folder.join("steps.json");
    std::fs::write(&file, steps.to_string()).unwrap();
    let mut command = Command::new("python3");
    command.arg(root().join("tests/python/in_terminal.py")).arg(&file).arg(env!("CARGO_BIN_EXE_cellql")).args(args);
    command.env("TERM", "xterm").env("XDG_STATE_HOME", folder).envs(envs.iter().copied());
    let Ok(out) = command.output() else {
        say("skipped: no python3 to make a terminal");
        return None;
    };
    let shown = text(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "{shown}\n{}", text(&out.stderr));
    Some(shown)
}

#[test]
fn a_person_in_the_shell() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let steps = serde_json::json!([
        ["see", "cellql> "],
        ["type", "SELECT 40 +\r"],
        ["see", "   ...> "],
        ["type", "2 AS answer;\r"],
        ["see", "| 42     |"],
        ["see", "1 row in"],
        // A mistake is pointed at, and the shell goes on.
        ["see", "cellql> "],
        ["type", "SELECT barcod FROM cells;\r"],
        ["see", "'barcode'"],
        ["see", "       ^"],
        // Tab: a column, and a gene in quotes.
        ["see", "cellql> "],
        ["type", "SELECT max(expression(expr, 'cxcl8\t)) AS highest, min(total_c\t) FROM cells;\r"],
        ["see", "| 3.0     |"],
        // Ctrl-C drops a line, then stops a query that would take days.
        ["see", "cellql> "],
        ["type", "SELECT nonsense\u{3}"],
        ["see", "cellql> "],
        ["type", "SELECT max(value % 7) FROM generate_series(1, 1000000000000000);\r"],
        ["wait", 1.5],
        ["type", "\u{3}"],
        ["see", "stopped by Ctrl-C"],
        ["see", "cellql> "],
        ["type", "\\set n 5\r"],
        ["see", "cellql> "],
        ["type", "SELECT $n * 100 AS after;\r"],
        ["see", "| 500   |"],
        ["see", "cellql> "],
        ["type", "\\dd\r"],
        ["see", "Did you mean"],
        ["see", "cellql> "],
        ["type", "\\d\r"],
        ["see", "| datasets"],
        ["see", "cellql> "],
        ["type", "\u{4}"]
    ]);
    if in_terminal(folder.path(), &steps, &["sql", &store], &[]).is_none() {
        return;
    }
    let history = std::fs::read_to_string(folder.path().join("cellql/history")).unwrap();
    assert!(history.contains("SELECT 40 +") && history.contains("\\set n 5"), "{history}");
    assert!(!history.contains("nonsense"), "{history}");
}

#[test]
fn long_work_shows_a_bar_on_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let steps = serde_json::json!([["see", "reading cells"], ["see", "320 of 320 cells kept"]]);
    in_terminal(folder.path(), &steps, &["ingest", &store, path(&demo_file())], &[]);
}

#[test]
fn what_is_taller_than_the_screen_goes_through_the_pager() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let script = "SELECT value AS low FROM generate_series(1, 5); SELECT value AS high FROM generate_series(1, 5000)";
    let args = ["sql", &store, "-c", script];
    let Some(shown) = in_terminal(folder.path(), &serde_json::json!([]), &args, &[("PAGER", "sed s/^/paged:/")]) else {
        return;
    };
    assert!(shown.contains("paged:| 1000 |") && !shown.contains("| 1001 |"), "{shown}");
    assert!(shown.contains("| low |") && !shown.contains("paged:| low"), "{shown}");
    assert!(shown.contains("4000 more rows are not shown"), "{shown}");
    let args = ["sql", &store, "-c", "SELECT 1", "--format", "parquet"];
    let file = folder.path().join("steps.json");
    let mut command = Command::new("python3");
    command.arg(root().join("tests/python/in_terminal.py")).arg(&file).arg(env!("CARGO_BIN_EXE_cellql")).args(args);
    let out = command.output().unwrap();
    assert!(
        out.status.code() == Some(1) && text(&out.stdout).contains("cannot be shown on a terminal"),
        "{}",
        text(&out.stdout)
    );
}
