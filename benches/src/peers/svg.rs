//! One bar chart per row, as SVG.

use std::fmt::Write;
use std::path::Path;

use super::engine::Result;
use super::report::Row;
use super::rows::Unit;

const WIDTH: f64 = 720.0;
const NAMES_WIDTH: f64 = 130.0;
const FIGURES_WIDTH: f64 = 170.0;
const TITLE_HEIGHT: f64 = 34.0;
const BAR_HEIGHT: f64 = 24.0;

/// Writes a file per row, in the order of the rows.
pub fn write(rows: &[Row], dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    for (n, row) in rows.iter().enumerate() {
        let words = row.name.split(|c: char| !c.is_ascii_alphanumeric());
        let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
        let name = format!("{:02}-{}.svg", n + 1, words.join("-").to_lowercase());
        std::fs::write(dir.join(name), chart(row)?)?;
    }
    Ok(())
}

/// A bar per engine as long as its median, with a line from its least to its greatest figure.
fn chart(row: &Row) -> Result<String> {
    let mut bars: Vec<_> = row
        .engines
        .iter()
        .map(|(name, figures)| (*name, figures))
        .collect();
    if !row.machine.median().is_nan() {
        bars.push(("the machine", &row.machine));
    }
    let height = TITLE_HEIGHT + BAR_HEIGHT * bars.len() as f64 + 8.0;
    let greatest = bars.iter().map(|bar| bar.1.max());
    // What is no number is no greatest one either.
    let greatest = greatest.fold(f64::MIN_POSITIVE, f64::max);
    let length = |figure: f64| match figure.is_nan() {
        true => 0.0,
        false => (WIDTH - NAMES_WIDTH - FIGURES_WIDTH) * figure / greatest,
    };
    let better = match row.unit {
        Unit::Rate => "more",
        _ => "less",
    };
    let unit = row.unit.name();
    let title = escaped(row.name);
    let mut svg = String::new();
    writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="white"/>
<text x="8" y="20" font-weight="bold">{title} ({unit}, {better} is better)</text>"#
    )?;
    for (n, (name, figures)) in bars.iter().enumerate() {
        let top = TITLE_HEIGHT + BAR_HEIGHT * n as f64;
        let (middle, text) = (top + 9.0, top + 14.0);
        let color = match n {
            0 => "#1f6feb",
            n if n < row.engines.len() => "#a8b3c1",
            _ => "#e3e7ec",
        };
        let (least, most) = (length(figures.min()), length(figures.max()));
        writeln!(
            svg,
            r##"<text x="{}" y="{text}" text-anchor="end">{}</text>
<rect x="{NAMES_WIDTH}" y="{top}" width="{:.1}" height="18" fill="{color}"/>
<path d="M{:.1} {middle}H{:.1}" stroke="#333"/>
<text x="{:.1}" y="{text}">{}</text>"##,
            NAMES_WIDTH - 8.0,
            escaped(name),
            length(figures.median()),
            NAMES_WIDTH + least,
            NAMES_WIDTH + most,
            NAMES_WIDTH + most + 8.0,
            figures.text(),
        )?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
