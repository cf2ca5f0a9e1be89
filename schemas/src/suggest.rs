//! Similar names, for error messages about unknown names.

/// Up to three of `known` that are similar to `name` (Jaro-Winkler above 0.75), best first.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let wanted = name.to_lowercase();
    let mut scored: Vec<(f64, &str)> = known
        .into_iter()
        .map(|k| (strsim::jaro_winkler(&wanted, &k.to_lowercase()), k))
        .filter(|(score, _)| *score > 0.75)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    scored.dedup();
    scored.into_iter().take(3).map(|(_, k)| k).collect()
}

/// A sentence to append to an error: ` Did you mean 'CD8A', 'CD8B'?`, or an empty string.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let names = nearest(name, known);
    if names.is_empty() {
        return String::new();
    }
    let quoted: Vec<String> = names.iter().map(|n| format!("'{n}'")).collect();
    format!(" Did you mean {}?", quoted.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_offered_and_far_ones_are_not() {
        assert_eq!(did_you_mean("cd8a", ["CD8A", "INS"]), " Did you mean 'CD8A'?");
        assert_eq!(did_you_mean("zzz", ["CD8A", "INS"]), "");
        assert_eq!(did_you_mean("cd8a", ["CD8A", "INS", "CD8A"]), " Did you mean 'CD8A'?");
    }
}
