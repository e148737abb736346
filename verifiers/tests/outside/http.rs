//! `http` against servers that fail in every way.

use std::{thread, time::Duration};

use serde_json::{Value, json};
use tallow_verifiers::{ContractCase, Outcome, Preparation, Verifiers, contract::check_with_cases};

use super::{
    build, check_broken, entry, gold, judge, rewards,
    server::{Answer, Server, results},
};

fn options(server: &Server) -> Value {
    json!({"url": server.url("/score"), "timeout_s": 0.4, "retries": 1, "backoff_s": 0.01,
           "concurrency": 8, "max_reply_bytes": 10_000})
}

fn sound(_: usize, request: &super::server::Request) -> Answer {
    Answer::Text(200, results(request))
}

#[test]
fn a_sound_server_meets_the_contract() {
    let server = Server::start(sound);
    let mut options = options(&server);
    options["timeout_s"] = json!(10);
    let case = |reply: &str, outcome| ContractCase {
        options: options.clone(),
        reference: gold(),
        reply: reply.to_owned(),
        outcome,
    };
    let cases = [case("42", Outcome::Correct), case("43", Outcome::Incorrect)];
    let verifiers = Verifiers::builtin();
    assert_eq!(check_with_cases(&entry(&verifiers, "http"), &verifiers, &cases), Ok(()));
}

/// A server that does `fault` to every request about a reply "bad", and judges others.
fn faulty(fault: impl Fn() -> Answer + Send + Sync + 'static) -> Server {
    Server::start(move |nth, request| {
        let bad = request.body["items"].to_string().contains("\"bad\"");
        if bad { fault() } else { sound(nth, request) }
    })
}

#[track_caller]
fn check_fault(fault: impl Fn() -> Answer + Send + Sync + 'static, requests: usize, told: &str) {
    let server = faulty(fault);
    let verifier = build("http", &options(&server));
    assert_eq!(rewards(&judge(&verifier, &["42", "41"])), [1.0, 0.0]);
    check_broken(&judge(&verifier, &["bad", "42"]), &["`http`", &server.url("/score"), told]);
    assert_eq!(server.requests() - 1, requests, "{told}");
    // A slow server may still hold the connection; the next group is judged all the same.
    assert_eq!(rewards(&judge(&verifier, &["41", "42"])), [0.0, 1.0]);
}

#[test]
fn slow_servers_time_out_and_are_asked_again() {
    let late = || Answer::Late(Duration::from_secs(2), String::new());
    check_fault(late, 2, "call 2: no whole answer within 0.4 s");
    check_fault(|| Answer::Trickle, 2, "no whole answer within 0.4 s");
    check_fault(|| Answer::Again("x: y\r\n"), 2, "");
    check_fault(|| Answer::Again("HTTP/1.1 100 Continue\r\n\r\n"), 2, "");
}

#[test]
fn a_server_that_reads_nothing_times_out() {
    // The kernel takes the connection and some of the request; nobody takes it from there.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it has an address").to_string();
    let options = json!({"url": format!("http://{address}/"), "timeout_s": 0.4, "retries": 0});
    let verifier = build("http", &options);
    check_broken(&judge(&verifier, &["42"]), &[&address, "within 0.4 s"]);
    check_broken(&judge(&verifier, &[&"x".repeat(32 << 20)]), &[&address, "within 0.4 s"]);
    // Nor does anybody shake hands.
    let options = json!({"url": format!("https://{address}/"), "timeout_s": 0.4, "retries": 0});
    check_broken(
        &judge(&build("http", &options), &["42"]),
        &["https://", &address, "within 0.4 s"],
    );
}

#[test]
fn a_server_that_speaks_no_tls_is_told() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it has an address").to_string();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut &stream, b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let options = json!({"url": format!("https://{address}/"), "timeout_s": 5, "retries": 0});
    check_broken(&judge(&build("http", &options), &["42"]), &["`http`", "https://", &address]);
}

#[test]
fn whether_a_scorer_is_there_is_asked_when_prepared() {
    let server = faulty(|| Answer::Hangup);
    let verifier = build("http", &options(&server));
    assert_eq!(verifier.prepare(&Preparation::default()), Ok(()));
    assert_eq!(server.bodies()[0]["items"], json!([]));
    let elsewhere = Server::start(|_, _| Answer::Text(404, "no such page".into()));
    let error = build("http", &options(&elsewhere)).prepare(&Preparation::default());
    assert!(error.expect_err("nobody judges there").to_string().contains("no such page"));
}

#[test]
fn dropped_connections_are_tried_again() {
    check_fault(|| Answer::Hangup, 2, "call 2: ");
    check_fault(|| Answer::Half, 2, "call 2: ");
}

#[test]
fn garbage_is_told_and_judges_nothing() {
    check_fault(|| Answer::Text(200, "fine!".into()), 1, "answered \"fine!\"");
    check_fault(|| Answer::Text(200, "{\"results\": [1]}".into()), 1, "1 results for 2 items");
    check_fault(|| Answer::Text(200, "{\"results\": [NaN, 1]}".into()), 1, "NaN");
    check_fault(|| Answer::Text(200, String::new()), 1, "answered \"\"");
    check_fault(|| Answer::Text(204, String::new()), 1, "answered \"\"");
    check_fault(|| Answer::Bytes("SSH-2.0-OpenSSH_9.6\r\n"), 2, "");
}

#[test]
fn floods_are_cut_off() {
    check_fault(|| Answer::Flood, 1, "more than 10000 bytes");
    check_fault(|| Answer::Text(200, "x".repeat(100_000)), 1, "more than 10000 bytes");
}

#[test]
fn statuses_decide_what_is_tried_again() {
    check_fault(|| Answer::Text(500, "out of memory".into()), 2, "out of memory");
    check_fault(|| Answer::Text(429, String::new()), 2, "status 429");
    check_fault(|| Answer::Text(401, "who are you?".into()), 1, "who are you?");
    check_fault(|| Answer::Headers(302, "location: http://127.0.0.1:1/"), 1, "status 302");
}

#[test]
fn a_server_that_recovers_gives_its_verdicts() {
    for fault in [
        || Answer::Text(500, String::new()),
        || Answer::Headers(429, "retry-after: 0"),
        || Answer::Hangup,
        || Answer::Half,
    ] {
        let server = Server::start(
            move |nth, request| {
                if nth % 2 == 0 { fault() } else { sound(nth, request) }
            },
        );
        let verifier = build("http", &options(&server));
        assert_eq!(rewards(&judge(&verifier, &["42", "41"])), [1.0, 0.0]);
        assert_eq!(rewards(&judge(&verifier, &["41"])), [0.0]);
        assert_eq!(server.requests(), 4);
    }
}

#[test]
fn an_unscorable_item_costs_itself_alone() {
    let server = Server::start(|_, _| {
        Answer::Text(200, "{\"results\": [1, {\"unscorable\": \"no compiler\"}]}".into())
    });
    let mut verdicts = judge(&build("http", &options(&server)), &["a", "b"]);
    check_broken(&verdicts.split_off(1), &["no compiler", &server.url("/score")]);
    assert_eq!(rewards(&verdicts), [1.0]);
}

#[test]
fn nobody_there_is_told() {
    // A port that was just free.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("it");
    let options = json!({"url": format!("http://{port}/"), "retries": 1, "backoff_s": 0.01});
    check_broken(&judge(&build("http", &options), &["42"]), &[&port.to_string(), "call 2"]);
}

#[test]
fn headers_come_from_the_environment_and_are_sent() {
    let path = std::env::var("PATH").expect("PATH is set").to_lowercase();
    let server = Server::start(move |nth, request| {
        let sent = request.head.contains(&format!("x-key: {path}\r\n"));
        if sent { sound(nth, request) } else { Answer::Text(401, String::new()) }
    });
    let mut options = options(&server);
    options["headers"] = json!({"x-key": "env:PATH"});
    assert_eq!(rewards(&judge(&build("http", &options), &["42"])), [1.0]);
}

#[test]
fn many_threads_share_it_within_the_limit() {
    let server =
        Server::start(|_, request| Answer::Late(Duration::from_millis(20), results(request)));
    let mut options = options(&server);
    options["concurrency"] = json!(3);
    options["timeout_s"] = json!(10);
    let verifier = build("http", &options);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..5 {
                    assert_eq!(rewards(&judge(&verifier, &["41", "42"])), [0.0, 1.0]);
                }
            });
        }
    });
    assert_eq!(server.requests(), 40);
    assert!(server.most_in_flight() <= 3, "{} at a time", server.most_in_flight());
    let ids: std::collections::HashSet<_> =
        server.bodies().iter().map(|it| it["id"].as_u64()).collect();
    assert_eq!(ids.len(), 40);
}
