//! Runs several ways of doing one thing, interleaved, and prints how they compare.

use std::io;

/// Returns one cost per column of the contest, lower is better.
type Trial<'a> = Box<dyn FnMut() -> io::Result<Vec<f64>> + 'a>;

/// Entrants that are measured in rounds, so that a slow minute of the machine hits all of them.
pub struct Contest<'a> {
    title: String,
    columns: Vec<String>,
    entrants: Vec<Entrant<'a>>,
}

struct Entrant<'a> {
    name: String,
    trial: Trial<'a>,
    // One row of column costs for each round.
    rounds: Vec<Vec<f64>>,
}

impl<'a> Contest<'a> {
    pub fn new(title: impl Into<String>, columns: &[&str]) -> Contest<'a> {
        let columns = columns.iter().map(|column| (*column).to_owned()).collect();
        Contest {
            title: title.into(),
            columns,
            entrants: Vec::new(),
        }
    }

    /// The first entrant is the one the ratios refer to.
    pub fn enter(
        &mut self,
        name: impl Into<String>,
        trial: impl FnMut() -> io::Result<Vec<f64>> + 'a,
    ) {
        self.entrants.push(Entrant {
            name: name.into(),
            trial: Box::new(trial),
            rounds: Vec::new(),
        });
    }

    /// Measures and prints. The warm-up round is not counted: whoever runs first on a fresh
    /// machine pays for backing the memory.
    pub fn run(mut self, rounds: usize) -> io::Result<()> {
        let entrant_count = self.entrants.len();
        for round in 0..=rounds {
            for turn in 0..entrant_count {
                let entrant = &mut self.entrants[(round + turn) % entrant_count];
                let costs = (entrant.trial)()?;
                assert_eq!(costs.len(), self.columns.len());
                if round > 0 {
                    entrant.rounds.push(costs);
                }
            }
        }
        println!("\n## {} ({rounds} rounds)", self.title);
        for (at, column) in self.columns.iter().enumerate() {
            self.print(at, column);
        }
        Ok(())
    }

    fn print(&self, at: usize, column: &str) {
        println!("\n| {column} | median | min-max | times first's speed | min-max |");
        println!("|---|---:|---:|---:|---:|");
        let first = &self.entrants[0];
        for entrant in &self.entrants {
            let cost = Spread::of(entrant.rounds.iter().map(|costs| costs[at]));
            let pairs = first.rounds.iter().zip(&entrant.rounds);
            let speed = Spread::of(pairs.map(|(first, own)| first[at] / own[at]));
            println!(
                "| {} | {:.1} | {:.1}-{:.1} | {:.2} | {:.2}-{:.2} |",
                entrant.name, cost.median, cost.min, cost.max, speed.median, speed.min, speed.max
            );
        }
    }
}

struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let last = values.len() - 1;
        Spread {
            min: values[0],
            median: values[values.len() / 2],
            max: values[last],
        }
    }
}
