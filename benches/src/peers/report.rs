//! Medians, spreads and ratios, as a table and as JSON.

use serde_json::{Value, json};

use super::engine::Entrant;
use super::rows::Unit;

/// What the runs of one engine gave for one row.
pub struct Figures(Vec<f64>);

impl Figures {
    pub fn new(mut figures: Vec<f64>) -> Figures {
        figures.sort_by(f64::total_cmp);
        Figures(figures)
    }

    pub fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        match self.0.len() % 2 {
            1 => self.0[middle],
            _ => f64::midpoint(self.0[middle - 1], self.0[middle]),
        }
    }

    pub fn min(&self) -> f64 {
        self.0[0]
    }

    pub fn max(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    fn json(&self) -> Value {
        json!({
            "median": self.median(),
            "min": self.min(),
            "max": self.max(),
            "sorted": self.0,
        })
    }

    /// For a cell of a table, or a label.
    pub fn text(&self) -> String {
        let [median, min, max] = [self.median(), self.min(), self.max()].map(short);
        match self.median().is_nan() {
            true => median,
            false => format!("{median} ({min}-{max})"),
        }
    }
}

/// One row: engines by name, ours first.
pub struct Row {
    pub name: &'static str,
    pub unit: Unit,
    pub engines: Vec<(&'static str, Figures)>,
    /// The machine with no engine between.
    pub machine: Figures,
}

impl Row {
    /// The best engine that is not ours, and by how much we are better: below 1 it is.
    pub fn best_peer(&self) -> Option<(&'static str, f64)> {
        let (ours, peers) = self.engines.split_first()?;
        let better = |peer: &Figures| match self.unit {
            Unit::Rate => ours.1.median() / peer.median(),
            _ => peer.median() / ours.1.median(),
        };
        let ratios = peers.iter().map(|(name, figures)| (*name, better(figures)));
        ratios
            .filter(|(_, ratio)| ratio.is_finite())
            .min_by(|a, b| a.1.total_cmp(&b.1))
    }

    pub fn json(&self) -> Value {
        let engines: serde_json::Map<String, Value> = self
            .engines
            .iter()
            .map(|(name, figures)| ((*name).to_owned(), figures.json()))
            .collect();
        let best = self.best_peer();
        json!({
            "row": self.name,
            "unit": self.unit.name(),
            "more_is_better": self.unit == Unit::Rate,
            "engines": engines,
            "machine": self.machine.json(),
            "best_peer": best.map(|best| best.0),
            "ratio_to_best_peer": best.map(|best| best.1),
        })
    }
}

/// Prints the head of the Markdown table of all rows.
pub fn print_head(entrants: &[Entrant]) {
    print!("| row | unit |");
    for entrant in entrants {
        print!(" {} |", entrant.name);
    }
    println!(" machine | ours to best peer |");
    println!("|---|---|{}", "---:|".repeat(entrants.len() + 2));
}

/// Prints some rows of the table.
pub fn print(rows: &[Row]) {
    for row in rows {
        print!("| {} | {} |", row.name, row.unit.name());
        for (_, figures) in &row.engines {
            print!(" {} |", figures.text());
        }
        print!(" {} |", row.machine.text());
        match row.best_peer() {
            Some((peer, ratio)) => println!(" {ratio:.2} ({peer}) |"),
            None => println!(" |"),
        }
    }
}

/// The geometric mean of ours to the best peer, over the rows whose names begin so.
pub fn mean_ratio(rows: &[Row], begin: &str) -> Option<f64> {
    let rows = rows.iter().filter(|row| row.name.starts_with(begin));
    let ratios: Vec<f64> = rows.filter_map(|row| Some(row.best_peer()?.1)).collect();
    let sum: f64 = ratios.iter().map(|ratio| ratio.ln()).sum();
    (!ratios.is_empty()).then(|| (sum / ratios.len() as f64).exp())
}

/// Two or three digits; what is no number stands for what could not be measured.
pub fn short(figure: f64) -> String {
    match figure {
        figure if figure.is_nan() => "none".to_owned(),
        figure if figure >= 1e6 => format!("{:.2}M", figure / 1e6),
        figure if figure >= 1e4 => format!("{:.0}k", figure / 1e3),
        figure if figure >= 1e3 => format!("{:.1}k", figure / 1e3),
        figure if figure >= 100.0 => format!("{figure:.0}"),
        figure if figure >= 10.0 => format!("{figure:.1}"),
        figure => format!("{figure:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(unit: Unit, ours: f64, peers: [f64; 3]) -> Option<(&'static str, f64)> {
        row("", unit, ours, peers).best_peer()
    }

    fn row(name: &'static str, unit: Unit, ours: f64, peers: [f64; 3]) -> Row {
        let figures = |figure| Figures::new(vec![figure]);
        let mut engines = vec![("ours", figures(ours))];
        engines.extend(["a", "b", "c"].into_iter().zip(peers.map(figures)));
        Row {
            name,
            unit,
            engines,
            machine: figures(f64::NAN),
        }
    }

    #[test]
    fn a_mean_of_ratios_is_of_the_rows_that_have_one() {
        let rows = [
            row("YCSB A", Unit::Rate, 8.0, [1.0, 2.0, f64::NAN]),
            row("YCSB B", Unit::Rate, 1.0, [0.5, 1.0, 0.2]),
            row("YCSB C", Unit::Rate, 1.0, [f64::NAN; 3]),
            row("get", Unit::Rate, 9.0, [1.0; 3]),
        ];
        assert!((mean_ratio(&rows, "YCSB").unwrap() - 2.0).abs() < 1e-9);
        assert_eq!(mean_ratio(&rows, "scan"), None);
    }

    #[test]
    fn the_best_peer_is_the_one_that_is_hardest_to_beat() {
        assert_eq!(best(Unit::Rate, 6.0, [1.0, 3.0, 2.0]), Some(("b", 2.0)));
        assert_eq!(best(Unit::Millis, 6.0, [4.0, 3.0, 9.0]), Some(("b", 0.5)));
    }

    #[test]
    fn a_peer_without_a_figure_is_not_the_best() {
        let peers = [f64::NAN, 3.0, 2.0];
        assert_eq!(best(Unit::Rate, 6.0, peers), Some(("b", 2.0)));
        assert_eq!(best(Unit::Micros, 6.0, peers), Some(("c", 1.0 / 3.0)));
        assert_eq!(best(Unit::Rate, 6.0, [f64::NAN; 3]), None);
    }

    #[test]
    fn a_median_of_an_even_number_lies_between() {
        assert_eq!(Figures::new(vec![9.0, 1.0, 4.0, 2.0]).median(), 3.0);
        assert_eq!(Figures::new(vec![9.0, 1.0, 4.0]).median(), 4.0);
    }
}
