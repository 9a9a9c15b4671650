//! Medians, spreads and ratios, as a table and as JSON.

use serde_json::{Value, json};

/// What the runs of one engine gave for one row, in operations per second.
pub struct Rates(Vec<f64>);

impl Rates {
    pub fn new(mut rates: Vec<f64>) -> Rates {
        rates.sort_by(f64::total_cmp);
        Rates(rates)
    }

    fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        match self.0.len() % 2 {
            1 => self.0[middle],
            _ => f64::midpoint(self.0[middle - 1], self.0[middle]),
        }
    }

    fn min(&self) -> f64 {
        self.0[0]
    }

    fn max(&self) -> f64 {
        self.0[self.0.len() - 1]
    }
}

/// One row: engines by name, ours first.
pub struct Row {
    pub name: &'static str,
    pub engines: Vec<(&'static str, Rates)>,
}

impl Row {
    /// The fastest engine that is not ours, and our median over its.
    fn best_peer(&self) -> Option<(&'static str, f64)> {
        let (ours, peers) = self.engines.split_first()?;
        let best = peers
            .iter()
            .max_by(|a, b| a.1.median().total_cmp(&b.1.median()))?;
        Some((best.0, ours.1.median() / best.1.median()))
    }

    pub fn json(&self) -> Value {
        let engines: serde_json::Map<String, Value> = self
            .engines
            .iter()
            .map(|(name, rates)| {
                let numbers = json!({
                    "median": rates.median(),
                    "min": rates.min(),
                    "max": rates.max(),
                    "sorted": rates.0,
                });
                ((*name).to_owned(), numbers)
            })
            .collect();
        let best = self.best_peer();
        json!({
            "row": self.name,
            "unit": "operations per second",
            "engines": engines,
            "best_peer": best.map(|best| best.0),
            "ratio_to_best_peer": best.map(|best| best.1),
        })
    }
}

/// Prints all rows as one Markdown table.
pub fn print(rows: &[Row]) {
    let Some(first) = rows.first() else { return };
    print!("| operations per second |");
    for (name, _) in &first.engines {
        print!(" {name} |");
    }
    println!(" ours / best peer |");
    println!("|---|{}---:|", "---:|".repeat(first.engines.len()));
    for row in rows {
        print!("| {} |", row.name);
        for (_, rates) in &row.engines {
            let (median, min, max) = (rates.median(), rates.min(), rates.max());
            print!(" {} ({}-{}) |", short(median), short(min), short(max));
        }
        match row.best_peer() {
            Some((peer, ratio)) => println!(" {ratio:.2} ({peer}) |"),
            None => println!(" |"),
        }
    }
}

fn short(rate: f64) -> String {
    match rate {
        rate if rate >= 1e6 => format!("{:.2}M", rate / 1e6),
        rate if rate >= 1e4 => format!("{:.0}k", rate / 1e3),
        rate if rate >= 1e3 => format!("{:.1}k", rate / 1e3),
        rate => format!("{rate:.0}"),
    }
}
