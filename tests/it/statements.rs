//! Statements with random damage from a seed: each is accepted, or refused as a wrong request. Nothing panics.

use std::time::{Duration, Instant};

use cellql::error::{Error, ErrorKind};
use cellql::query::Session;
use futures::StreamExt;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::stores::{demo_store, say};

/// Statements with damage.
const ROUNDS: usize = 1500;
/// A statement that runs longer is stopped.
const LONGEST: Duration = Duration::from_secs(20);
/// Whole statements, of which parts are taken.
const WHOLE: &[&str] = &[
    "SELECT cell_id, embed(expr, pool => 'max') AS v FROM cells WHERE cell_type = 'beta' ORDER BY cell_id LIMIT 5",
    "SELECT cell_type, count(*), avg(expression(expr, 'INS')) FROM cells GROUP BY cell_type HAVING count(*) > 3",
    "WITH b AS (SELECT * FROM cells WHERE n_genes BETWEEN 1 AND 3000) SELECT b.barcode FROM b JOIN genes g ON true",
    "SELECT * FROM vector_search('cells', 5, k => 10, where => 'n_genes > 900') ORDER BY _distance DESC NULLS LAST",
    "SELECT cell_id FROM cells c JOIN embeddings e USING (cell_id) ORDER BY cosine_distance(vector, vector), 1 LIMIT 3",
    "SELECT donor_id, top_genes(mean_expr(log_normalise(expr)), 3) FROM cells GROUP BY ROLLUP (donor_id)",
    "SELECT cell_id, rank() OVER (PARTITION BY cell_type ORDER BY total_counts DESC ROWS 3 PRECEDING) FROM obs",
    "EXPLAIN ANALYZE SELECT unnest(expr['gene_id']) FROM cells WHERE gene_score(expr, ['INS', 'GCG']) IS NOT NULL",
    "SELECT CASE WHEN cell_id % 2 = 0 THEN 'a' ELSE NULL END, CAST(n_genes AS DOUBLE) / 0 FROM cells UNION SELECT 1, 2",
    "SET datafusion.execution.target_partitions = 2",
    "SELECT array_agg(DISTINCT cell_type ORDER BY cell_type) FILTER (WHERE n_genes > 5) FROM cells",
];
/// Words that seldom stand where they are put.
const WORDS: &[&str] = &[
    "TABLESAMPLE",
    "(10 ROWS)",
    "FOR UPDATE",
    "LATERAL",
    "QUALIFY",
    "PREWHERE",
    "''",
    "'it''s'",
    "\"expr\"",
    "NULL",
    "1e400",
    "-9223372036854775808",
    "18446744073709551616",
    "0x",
    "$x",
    "$1",
    "?",
    "[",
    "]",
    "{",
    "}",
    "::",
    "=>",
    "DISTINCT",
    "EXCEPT",
    "INTERSECT ALL",
    "VALUES (1)",
    "*",
    "t.*",
    "\u{1}",
    "é",
    "/* open",
    "--",
    "E'\\'",
    "$$a$$",
    "INTERVAL '1' DAY",
    "FETCH FIRST 3 ROWS ONLY",
    "GROUPING SETS ((1), ())",
    "IN ()",
    "NOT",
    "IS",
    "PIVOT",
    "|>",
    "WITH RECURSIVE",
    "COPY",
    "DROP TABLE",
    "PREPARE p AS",
    "EXECUTE p",
    "embed",
    "vector_search",
    "expression",
    "'CD3D'",
];

fn words(statement: &str) -> Vec<String> {
    statement.split_inclusive([' ', '(', ')', ',']).map(str::to_owned).collect()
}

/// A statement with a few words left out, doubled, exchanged or put in.
fn damaged(random: &mut ChaCha8Rng) -> String {
    let mut of = words(WHOLE.choose(random).unwrap());
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..of.len());
        match random.random_range(0..5) {
            0 if of.len() > 1 => drop(of.remove(at)),
            1 => of.insert(at, of[at].clone()),
            2 => {
                let other = random.random_range(0..of.len());
                of.swap(at, other);
            }
            3 => {
                let other = words(WHOLE.choose(random).unwrap());
                of[at] = other.choose(random).unwrap().clone();
            }
            _ => of.insert(at, format!(" {} ", WORDS.choose(random).unwrap())),
        }
    }
    of.concat()
}

/// Plans a statement and, if asked to, runs it. `None` if nothing failed.
async fn tried(session: std::sync::Arc<Session>, statement: String, run: bool) -> Option<Error> {
    let frame = match session.sql(&statement).await {
        Ok(frame) => frame,
        Err(error) => return Some(error),
    };
    if !run {
        return frame.create_physical_plan().await.err().map(Error::from);
    }
    // Joins without a condition may take long; a statement that was stopped has not failed.
    let read = async {
        // Not collected: damage makes joins of all cells and all genes.
        let mut rows = frame.execute_stream().await?;
        while let Some(batch) = rows.next().await {
            batch?;
        }
        Ok::<(), Error>(())
    };
    tokio::time::timeout(LONGEST, read).await.ok()?.err()
}

/// Plans, or runs, damaged statements for at least so many rounds and so many seconds.
async fn attack(seed: u64, rounds: usize, time: Duration, run: bool) {
    let session = std::sync::Arc::new(Session::open(demo_store().await).await.unwrap());
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (mut fine, mut refused, mut internal) = (0, 0, Vec::new());
    let (start, mut round) = (Instant::now(), 0);
    while round < rounds || start.elapsed() < time {
        let statement = damaged(&mut random);
        let done = tokio::spawn(tried(session.clone(), statement.clone(), run)).await;
        match done.unwrap_or_else(|panic| panic!("seed {seed}, round {round}: {statement}: {panic}")) {
            None => fine += 1,
            Some(error) => match error.kind() {
                ErrorKind::Request => refused += 1,
                _ => internal.push(format!("{statement}: {error}")),
            },
        }
        round += 1;
    }
    say(&format!("{fine} damaged statements accepted, {refused} refused, {} failed inside", internal.len()));
    assert!(fine > round / 50 && refused > round / 5, "{fine} {refused}");
    assert!(internal.is_empty(), "seed {seed}: {}", internal.join("\n"));
    assert!(run || session.take_notices().cells_embedded == 0, "planning runs no model");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_statements_are_planned_or_refused() {
    attack(9, ROUNDS, Duration::ZERO, false).await;
}

/// `make fuzz-statements` runs statements, from a new seed, for `FUZZ_SECONDS`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes as long as it is given"]
async fn damaged_statements_are_run_or_refused() {
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(60);
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    say(&format!("seed {seed}"));
    attack(seed, 0, Duration::from_secs(seconds), true).await;
}
