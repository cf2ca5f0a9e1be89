//! Gene names that a spreadsheet program converted to dates: `SEPT2` became `2-Sep`, and both `MARCH1` and `MARC1`
//! became `1-Mar` (Ziemann et al., Genome Biology 2016).

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

/// Prefixes of gene names that a spreadsheet reads as a month, 1 to 12.
pub fn prefixes(month: usize) -> &'static [&'static str] {
    match month {
        2 => &["FEB"],
        3 => &["MARCH", "MARC"],
        4 => &["APR"],
        9 => &["SEPT", "SEP"],
        10 => &["OCT"],
        11 => &["NOV"],
        12 => &["DEC"],
        _ => &[],
    }
}

/// Month and day of `2-Sep`, `Sep-02`, `Sep-2` and `2021-09-02[ 00:00:00]`; `None` if the text is not a date.
pub fn day_of_year(name: &str) -> Option<(usize, u32)> {
    let date = name.split([' ', 'T']).next()?;
    let parts: Vec<&str> = date.split('-').collect();
    let (month, day) = match parts[..] {
        [year, month, day] if year.len() == 4 && year.parse::<u32>().is_ok() => (month.parse().ok()?, day),
        [first, second] => match (month_of(first), month_of(second)) {
            (Some(month), None) => (month, second),
            (None, Some(month)) => (month, first),
            _ => return None,
        },
        _ => return None,
    };
    let day: u32 = day.parse().ok()?;
    ((1..=12).contains(&month) && (1..=31).contains(&day)).then_some((month, day))
}

fn month_of(text: &str) -> Option<usize> {
    let text = text.to_lowercase();
    MONTHS.iter().position(|m| *m == text).map(|m| m + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_as_spreadsheets_write_them_are_recognised_and_names_are_not() {
        for text in ["2-Sep", "Sep-02", "sep-2", "2021-09-02", "2021-09-02 00:00:00"] {
            assert_eq!(day_of_year(text), Some((9, 2)), "{text}");
        }
        for text in ["SEPT2", "HLA-A", "MT-CO1", "2-Foo", "Sep-99", "1-2", "-", "2021-13-02", ""] {
            assert_eq!(day_of_year(text), None, "{text}");
        }
    }
}
