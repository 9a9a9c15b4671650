//! Bytes as text and back: keys, values, lengths and times.
//!
//! A key or value is shown as it is where it is printable UTF-8, and as `hex:` with its digits
//! otherwise. What is shown can be given back: [`parse`] undoes [`show`] for every byte string.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use serde_json::{Map, Value};
use strandline::Hlc;

use crate::failure::{Failure, Result};

/// Marks digits that stand for bytes.
pub const HEX_MARK: &str = "hex:";

/// The bytes as text: themselves where they print, `hex:` and digits otherwise.
pub fn show(bytes: &[u8]) -> String {
    match printable(bytes) {
        Some(text) => text.to_owned(),
        None => format!("{HEX_MARK}{}", hex(bytes)),
    }
}

/// As [`show`], cut to about `len_max` characters with the whole length behind.
pub fn preview(bytes: &[u8], len_max: usize) -> String {
    if bytes.len() <= len_max {
        return show(bytes);
    }
    let mut end = len_max;
    while end > 0 && bytes[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    let shown = match printable(&bytes[..end]) {
        Some(text) => text.to_owned(),
        None => format!("{HEX_MARK}{}", hex(&bytes[..len_max / 2])),
    };
    format!("{shown}… ({} bytes)", bytes.len())
}

fn printable(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    let prints = !text.is_empty() && !text.chars().any(char::is_control);
    (prints && !text.starts_with(HEX_MARK)).then_some(text)
}

/// A key as it was given on the command line: its bytes, or those that `hex:` digits stand for.
///
/// # Errors
/// Usage, for `hex:` with anything but pairs of digits behind it.
pub fn parse(argument: &OsStr) -> Result<Vec<u8>> {
    let bytes = argument.as_bytes();
    match bytes.strip_prefix(HEX_MARK.as_bytes()) {
        None => Ok(bytes.to_vec()),
        Some(digits) => unhex(digits).ok_or_else(|| {
            let shown = String::from_utf8_lossy(bytes);
            Failure::usage(format!(
                "{shown}: hex: must be followed by pairs of hexadecimal digits"
            ))
        }),
    }
}

/// Two lower-case digits for each byte.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// The bytes that pairs of digits stand for.
pub fn unhex(digits: &[u8]) -> Option<Vec<u8>> {
    let value = |digit: u8| char::from(digit).to_digit(16).map(|d| d as u8);
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks(2)
        .map(|pair| Some(value(pair[0])? << 4 | value(pair[1])?))
        .collect()
}

/// Puts bytes into a JSON object: as `name` where they are UTF-8, as `name_hex` otherwise.
pub fn put_json(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_hex"), hex(bytes).into()),
    };
}

/// A number of bytes, in the unit that fits.
pub fn len(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut shown = bytes as f64;
    while shown >= 1024.0 && unit + 1 < UNITS.len() {
        shown /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{shown:.1} {}", UNITS[unit]),
    }
}

/// A number with its thousands apart.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// One thing, or several: `1 file`, `2 files`.
pub fn plural(number: u64, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{} {noun}s", count(number)),
    }
}

/// The time of a hybrid clock value, UTC.
pub fn time(at: Hlc) -> String {
    let millis = at.millis();
    let (days, in_day) = (millis / 86_400_000, millis % 86_400_000);
    let (year, month, day) = date(days);
    let (hour, minute) = (in_day / 3_600_000, in_day / 60_000 % 60);
    let (second, milli) = (in_day / 1000 % 60, in_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// Year, month and day of a number of days since 1970. Source: Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms", `civil_from_days`, for dates from 1970 on.
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, in_era) = (shifted / 146_097, shifted % 146_097);
    let year_in_era = (in_era - in_era / 1_460 + in_era / 36_524 - in_era / 146_096) / 365;
    let in_year = in_era - (365 * year_in_era + year_in_era / 4 - year_in_era / 100);
    let from_march = (5 * in_year + 2) / 153;
    let day = in_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_in_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_given_back() {
        let cases: [(&[u8], &str); 7] = [
            (b"plain", "plain"),
            ("größe".as_bytes(), "größe"),
            (b"", "hex:"),
            (b"a\tb", "hex:610962"),
            (b"\xff\x00", "hex:ff00"),
            (b"hex:00", "hex:6865783a3030"),
            (b"with space", "with space"),
        ];
        for (bytes, shown) in cases {
            assert_eq!(show(bytes), shown);
            assert_eq!(parse(OsStr::new(&shown)).unwrap(), bytes);
        }
    }

    #[test]
    fn broken_digits_are_refused() {
        for bad in ["hex:0", "hex:zz", "hex:0x12"] {
            assert!(parse(OsStr::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_lengths_and_counts_read_well() {
        let check = |millis, expected| assert_eq!(time(Hlc::from_millis(millis)), expected);
        check(0, "1970-01-01T00:00:00.000Z");
        check(951_782_400_000, "2000-02-29T00:00:00.000Z");
        check(1_735_689_599_999, "2024-12-31T23:59:59.999Z");
        assert_eq!(len(1023), "1023 B");
        assert_eq!(len(1536), "1.5 KiB");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(999), "999");
        assert_eq!(plural(1, "file"), "1 file");
    }

    #[test]
    fn a_preview_never_cuts_a_character() {
        for len_max in 1..12 {
            let shown = preview("größere Größe".as_bytes(), len_max);
            assert!(shown.ends_with("(17 bytes)"), "{shown}");
        }
    }
}
