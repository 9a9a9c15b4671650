//! `status http://ADDR`: what a node tells of itself over HTTP, its followers included.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::failure::{Exit, Failure, Result};
use crate::log::one_line;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer, in bytes.
const ANSWER_LEN_MAX: u64 = 16 << 20;

/// Asks a node and prints how it stands, or one dataset of it.
pub(super) fn print(address: &str, dataset: Option<&str>, is_json: bool) -> Result<Exit> {
    let address = address.trim_end_matches('/');
    let answer = ask(address).map_err(|error| failed(address, error))?;
    let mut datasets =
        standings(&answer).ok_or_else(|| failed(address, "it is no node's status"))?;
    if let Some(wanted) = dataset {
        datasets.retain(|it| it["name"] == wanted);
        if datasets.is_empty() {
            return Err(failed(address, format!("there is no dataset {wanted}")));
        }
    }
    let mut out = std::io::stdout().lock();
    if is_json {
        writeln!(out, "{:#}", json!({ "datasets": datasets }))?;
        return Ok(Exit::Ok);
    }
    for standing in &datasets {
        show(standing, &mut out)?;
    }
    Ok(Exit::Ok)
}

fn failed(address: &str, why: impl std::fmt::Display) -> Failure {
    Failure::io(format!("http://{address}/status: {why}"))
}

fn ask(address: &str) -> std::io::Result<String> {
    let to: SocketAddr = address
        .parse()
        .map_err(|_| std::io::Error::other("name the node by IP:PORT, as http://127.0.0.1:9464"))?;
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!("GET /status HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_LEN_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

fn standings(answer: &str) -> Option<Vec<Value>> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let is_good = head.starts_with("HTTP/1.1 200 ");
    let document: Value = serde_json::from_str(body).ok()?;
    document["datasets"].as_array().filter(|_| is_good).cloned()
}

fn show(standing: &Value, out: &mut dyn Write) -> Result<()> {
    let text = |of: &Value, name: &str| one_line(of[name].as_str().unwrap_or_default());
    let number = |of: &Value, name: &str| of[name].as_u64().unwrap_or_default();
    let (name, role) = (text(standing, "name"), text(standing, "role"));
    writeln!(
        out,
        "dataset {name}: {role}, epoch {}",
        number(standing, "epoch")
    )?;
    if role != "leader" {
        let state = match standing["connected"] == true {
            true => "connected",
            false => "not connected",
        };
        writeln!(out, "  leader    {}, {state}", text(standing, "leader"))?;
    }
    let list = |name: &str| standing[name].as_array().cloned().unwrap_or_default();
    let end = |it: &Value| format!("{}/{}", number(it, "epoch"), number(it, "seq"));
    let ends: Vec<String> = list("positions").iter().map(end).collect();
    writeln!(out, "  positions {}", ends.join(", "))?;
    for it in list("followers") {
        let state = match it["connected"] == true {
            true => format!(
                "{} records behind, {} more not shown, {} ms",
                number(&it, "transport_lag"),
                number(&it, "apply_lag"),
                number(&it, "lag_ms")
            ),
            false => "not connected".to_owned(),
        };
        writeln!(out, "  follower  {}: {state}", text(&it, "name"))?;
    }
    for why in list("ailments") {
        writeln!(
            out,
            "  ailing    {}",
            one_line(why.as_str().unwrap_or_default())
        )?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_answers_is_no_status_or_shown_as_far_as_it_goes() {
        let with = |body: &str| format!("HTTP/1.1 200 OK\r\nx: y\r\n\r\n{body}");
        for answer in [
            "",
            "HTTP/1.1 200 OK",
            &with(""),
            &with("[]"),
            &with("{\"datasets\": 1}"),
        ] {
            assert!(standings(answer).is_none(), "{answer}");
        }
        let not_found = with("{\"datasets\": []}").replace("200 OK", "404 Not Found");
        assert!(standings(&not_found).is_none());
        let odd = with("{\"datasets\": [7, {\"name\": \"a\\nb\", \"followers\": [null]}]}");
        let mut out = Vec::new();
        for standing in standings(&odd).unwrap() {
            show(&standing, &mut out).unwrap();
        }
        let shown = String::from_utf8(out).unwrap();
        assert!(shown.contains("dataset a\\nb: , epoch 0\n"), "{shown}");
        assert!(shown.contains("  follower  : not connected\n"), "{shown}");
    }
}
