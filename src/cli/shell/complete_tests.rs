use super::*;

fn table(name: &str, columns: &[&str]) -> Table {
    let columns = columns.iter().map(|c| ((*c).to_owned(), "Utf8".to_owned())).collect();
    Table { name: name.to_owned(), is_view: false, columns }
}

fn names() -> Names {
    let texts = |all: &[&str]| all.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
    Names {
        tables: vec![
            table("cells", &["cell_id", "cell_type", "Donor Age", "expr"]),
            table("genes", &["gene_id", "symbol"]),
            table("\"X\"", &["cell_id", "value"]),
            table("embeddings.tiny", &["cell_id", "vector"]),
        ],
        functions: texts(&["avg", "embed", "embed_gene", "expression"]),
        models: texts(&["tiny", "tall"]),
        recipes: texts(&["tiny.max"]),
        parameters: texts(&["tissue"]),
        formats: texts(&["csv", "table"]),
        genes: LazyCell::new(Box::new(|| ["C1orf43", "CD4", "CD8A", "CD8B", "INS"].map(str::to_owned).to_vec())),
    }
}

/// Completes at `|`.
fn at(marked: &str) -> Vec<String> {
    let cursor = marked.find('|').unwrap();
    let found = complete(&marked.replacen('|', "", 1), cursor, &names());
    assert!(found.start <= cursor, "{marked}");
    found.candidates
}

#[test]
fn columns_of_the_tables_that_the_statement_names_come_first() {
    assert_eq!(at("SELECT cell_| FROM cells"), ["cell_id", "cell_type"]);
    assert_eq!(at("SELECT sy| FROM genes")[0], "symbol");
    assert!(!at("SELECT sy| FROM cells").contains(&"symbol".to_owned()));
    assert!(at("SELECT sy|").contains(&"symbol".to_owned()), "no table is named yet");
    assert_eq!(at("SELECT don| FROM cells"), ["\"Donor Age\""]);
    let found = complete("SELECT \"Don", 11, &names());
    assert_eq!((found.start, found.candidates[0].as_str()), (7, "\"Donor Age\""));
}

#[test]
fn tables_follow_from_and_join() {
    assert_eq!(at("SELECT * FROM ce|"), ["cells"]);
    assert_eq!(at("SELECT * FROM x|"), ["\"X\""]);
    assert_eq!(at("SELECT * FROM vec|"), ["vector_search"]);
    assert_eq!(at("SELECT * FROM cells JOIN embeddings.|"), ["tiny"]);
}

#[test]
fn an_alias_has_the_columns_of_its_table() {
    assert_eq!(at("SELECT e.v| FROM embeddings.tiny AS e"), ["vector"]);
    assert_eq!(at("SELECT c.cell_t| FROM cells c"), ["cell_type"]);
    assert_eq!(at("SELECT genes.s| FROM genes"), ["symbol"]);
}

#[test]
fn keywords_take_the_case_of_the_person() {
    assert!(at("sele|").contains(&"select".to_owned()));
    assert!(at("SELE|").contains(&"SELECT".to_owned()));
}

#[test]
fn functions_and_the_options_of_their_calls() {
    assert!(at("SELECT emb|").starts_with(&[
        "embeddings.tiny".to_owned(),
        "embed".to_owned(),
        "embed_gene".to_owned()
    ]));
    assert_eq!(at("SELECT embed(expr, po| FROM cells")[0], "pool => ");
    assert_eq!(at("SELECT avg(embed(expr, model => 'tiny', de|")[0], "depth => ");
    assert!(!at("SELECT avg(expr, po|").contains(&"pool => ".to_owned()));
    assert!(!at("SELECT embed(ex|").contains(&"expr => ".to_owned()));
}

#[test]
fn values_of_options_are_offered_in_their_quotes() {
    assert_eq!(at("SELECT embed(expr, model => 't|"), ["tiny'", "tall'"]);
    assert_eq!(at("SELECT embed(expr, pool => '|"), ["all'", "max'"]);
    assert_eq!(at("SELECT embed(expr, precision => 'b|"), ["bf16'"]);
    assert_eq!(at("SELECT embed(expr, depth => '|"), ["t4'", "f2'", "a0.5'"]);
    assert_eq!(at("SELECT embed(expr, input => 'bulk|"), ["bulk'", "bulk-log'"]);
    assert_eq!(at("SELECT * FROM vector_search('|"), ["cells'", "genes'"]);
    assert_eq!(at("SELECT * FROM vector_search('genes', 'in|"), ["INS'"]);
    assert_eq!(at("SELECT * FROM vector_search('cells', [1, 2], metric => 'l|"), ["l2'"]);
    assert_eq!(at("SELECT * FROM vector_search('cells', 1, recipe => 'ti|"), ["tiny.max'"]);
}

#[test]
fn genes_are_offered_in_quotes_whatever_their_case() {
    assert_eq!(at("SELECT expression(expr, 'cd8|"), ["CD8A'", "CD8B'"]);
    assert_eq!(at("SELECT expression(expr, 'C1O|"), ["C1orf43'"]);
    assert!(at("SELECT expression(expr, '|").is_empty());
    let found = complete("SELECT f('a', 'IN", 17, &names());
    assert_eq!(found, Found { start: 15, candidates: vec!["INS'".to_owned()] });
}

#[test]
fn commands_and_their_arguments() {
    assert_eq!(at("\\d|"), ["\\d", "\\df", "\\dm", "\\di"]);
    assert_eq!(at("\\d ce|"), ["cells"]);
    assert_eq!(at("\\df embed|"), ["embed", "embed_gene"]);
    assert_eq!(at("\\g cd4|"), ["CD4"]);
    assert_eq!(at("\\format c|"), ["csv"]);
}

#[test]
fn parameters_follow_a_dollar() {
    assert_eq!(at("SELECT * FROM cells WHERE tissue = $t|"), ["tissue"]);
}

#[test]
fn only_the_last_statement_counts_and_nothing_breaks_it() {
    assert_eq!(at("SELECT 1; SELECT cell_t| FROM cells"), ["cell_type"]);
    for text in
        ["|", ";|", "SELECT 'ä|", "SELECT \"|", "SELECT $|", ".|", "/* |", "SELECT (|", "ä|", "SELECT é.|", "' '|"]
    {
        at(text);
    }
}
