//! An HTTP endpoint that judges, called under limits; `http` and `judge` share it.
//!
//! A call is one POST of JSON and ends within `timeout_s`, whatever the server does: that spans the look-up
//! of its name, the connection and the last byte of its answer. What may pass is tried again, after a pause
//! that doubles each time: a connection that fails or breaks, a timeout, status 408, 425, 429 and 5xx.
//! `Retry-After` of up to a minute is heeded. Other statuses are final, redirects too: a header with a key
//! goes to the configured server and to no other.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    env, fmt,
    sync::{Condvar, Mutex, PoisonError},
    thread,
    time::Duration,
};

use ureq::{
    Agent, Error,
    http::{Uri, header::RETRY_AFTER},
};

use crate::{answer_span::excerpt, config_fault::ConfigFault};

/// The longest pause between two calls.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Idle connections are used again for so long: servers close theirs after five seconds at the least.
const IDLE: Duration = Duration::from_secs(3);

/// How an endpoint is called.
pub(crate) struct Settings<'a> {
    /// The key of the address among the options, for faults.
    pub key: &'a str,
    /// The address.
    pub url: &'a str,
    /// Headers; a value `env:NAME` is that of the environment variable.
    pub headers: &'a BTreeMap<String, String>,
    /// Seconds that one call may take.
    pub timeout_s: f64,
    /// Calls after the first that failed.
    pub retries: u32,
    /// Seconds before the second call; each later pause is twice as long.
    pub backoff_s: f64,
    /// Calls at a time.
    pub concurrency: u32,
    /// Bytes that an answer may have.
    pub max_reply_bytes: u64,
}

/// An HTTP endpoint.
pub(crate) struct Endpoint {
    agent: Agent,
    url: String,
    shown: String,
    headers: Vec<(String, String)>,
    retries: u32,
    backoff: Duration,
    max_reply_bytes: u64,
    permits: Permits,
    timeout: Duration,
}

/// Why a call gave nothing.
pub(crate) struct Failure {
    problem: String,
    /// Whether another call may fare better.
    passing: bool,
    /// The pause that the server asked for.
    pause: Option<Duration>,
}

impl Failure {
    /// One that another call may not meet.
    pub(crate) fn passing(problem: impl fmt::Display) -> Self {
        Self { problem: problem.to_string(), passing: true, pause: None }
    }

    /// One that every call would meet.
    pub(crate) fn lasting(problem: impl fmt::Display) -> Self {
        Self { problem: problem.to_string(), passing: false, pause: None }
    }
}

impl Endpoint {
    /// The endpoint, not called yet.
    ///
    /// # Errors
    /// The first setting that cannot be.
    pub(crate) fn new(settings: &Settings<'_>) -> Result<Self, ConfigFault> {
        let uri = address(settings.key, settings.url)?;
        let timeout = seconds("timeout_s", settings.timeout_s, 0.001)?;
        let backoff = seconds("backoff_s", settings.backoff_s, 0.0)?;
        for (key, value, low, high) in [
            ("retries", u64::from(settings.retries), 0, 100),
            ("concurrency", u64::from(settings.concurrency), 1, 4096),
            ("max_reply_bytes", settings.max_reply_bytes, 64, 1 << 30),
        ] {
            if !(low..=high).contains(&value) {
                return Err(ConfigFault::new(key, "the limit is out of range")
                    .found(value)
                    .expected(format!("{low} to {high}")));
            }
        }
        let mut headers = Vec::new();
        for (name, value) in settings.headers {
            let key = format!("headers.{name}");
            headers.push((name.clone(), header(&key, name, value)?));
        }
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(timeout))
            .max_idle_connections(settings.concurrency as usize)
            .max_idle_connections_per_host(settings.concurrency as usize)
            .max_idle_age(IDLE)
            .user_agent("tallow");
        if own_machine(&uri) {
            config = config.proxy(None);
        }
        Ok(Self {
            agent: config.build().new_agent(),
            url: settings.url.to_owned(),
            shown: shown(&uri),
            headers,
            retries: settings.retries,
            backoff,
            max_reply_bytes: settings.max_reply_bytes,
            permits: Permits::new(settings.concurrency),
            timeout,
        })
    }

    /// The address, without what a query may hold.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// Posts `body` until `read` makes something of the answer, a call has a lasting failure or there
    /// have been enough calls. `body` is told which call it is for, from 0.
    ///
    /// # Errors
    /// The last failure, after how many calls, and from where.
    pub(crate) fn ask<'a, T>(
        &self,
        body: impl Fn(u32) -> Cow<'a, [u8]>,
        mut read: impl FnMut(&[u8]) -> Result<T, Failure>,
    ) -> Result<T, String> {
        let mut pause = self.backoff;
        let mut call = 0;
        loop {
            let outcome = {
                let _permit = self.permits.take();
                self.call(&body(call))
            };
            let failure = match outcome.and_then(|answer| read(&answer)) {
                Ok(found) => return Ok(found),
                Err(failure) => failure,
            };
            if !failure.passing || call >= self.retries {
                let calls = if call == 0 { String::new() } else { format!(", call {}", call + 1) };
                return Err(format!("{}{calls}: {}", self.shown, failure.problem));
            }
            thread::sleep(failure.pause.unwrap_or_default().max(pause).min(LONGEST_PAUSE));
            pause = pause.saturating_mul(2);
            call += 1;
        }
    }

    /// One call: the body of an answer with a status of 2xx.
    fn call(&self, body: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut request = self.agent.post(&self.url).content_type("application/json");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let mut response = request.send(body).map_err(|error| self.failure(&error))?;
        let status = response.status();
        let pause = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let read = response.body_mut().with_config().limit(self.max_reply_bytes).read_to_vec();
        if status.is_success() {
            return read.map_err(|error| self.failure(&error));
        }
        // What an error page says is worth telling; that it could not be read is not.
        let page = read.unwrap_or_default();
        let told = match String::from_utf8_lossy(&page).trim() {
            "" => String::new(),
            text => format!(": {}", excerpt(text)),
        };
        let passing = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
        Err(Failure { problem: format!("answered with status {status}{told}"), passing, pause })
    }

    fn failure(&self, error: &Error) -> Failure {
        match error {
            Error::BodyExceedsLimit(_) => Failure::lasting(format!(
                "the answer has more than {} bytes (max_reply_bytes)",
                self.max_reply_bytes
            )),
            Error::Timeout(_) => Failure::passing(format!(
                "no whole answer within {} s (timeout_s)",
                self.timeout.as_secs_f64()
            )),
            Error::BadUri(_)
            | Error::Http(_)
            | Error::InvalidProxyUrl
            | Error::LargeResponseHeader(..)
            | Error::Tls(_)
            | Error::TlsRequired => Failure::lasting(error),
            // Names that cannot be looked up, too: a resolver may be back in a second.
            error => Failure::passing(error),
        }
    }
}

/// How many calls are in flight.
struct Permits {
    free: Mutex<u32>,
    freed: Condvar,
}

impl Permits {
    fn new(count: u32) -> Self {
        Self { free: Mutex::new(count), freed: Condvar::new() }
    }

    /// Waits until one is free. Every holder gives its own back within a timeout.
    fn take(&self) -> Permit<'_> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            free = self.freed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Permit(self)
    }
}

struct Permit<'a>(&'a Permits);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

/// The address, if it is one that can be called and holds no secret.
fn address(key: &str, url: &str) -> Result<Uri, ConfigFault> {
    const EXPECTED: &str = "http://HOST:PORT/PATH or https://HOST/PATH";
    if url.is_empty() {
        return Err(ConfigFault::new(key, "there is no server").expected(EXPECTED));
    }
    let uri: Uri = url.parse().map_err(|error| {
        ConfigFault::new(key, format!("not an address: {error}"))
            .found(excerpt(url))
            .expected(EXPECTED)
    })?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return Err(ConfigFault::new(key, "not an address").found(excerpt(url)).expected(EXPECTED));
    }
    if uri.authority().is_some_and(|it| it.as_str().contains('@')) {
        return Err(ConfigFault::new(key, "the address holds a user's name or password")
            .expected("an address without secrets")
            .hint("headers = { authorization = \"env:NAME\" }"));
    }
    Ok(uri)
}

fn shown(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", |it| it.as_str());
    format!("{}://{authority}{}", uri.scheme_str().unwrap_or_default(), uri.path())
}

/// Whether the address is this machine's own, which no proxy knows.
fn own_machine(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|it| it.is_loopback())
}

/// A header's value; `env:NAME` stands for an environment variable.
fn header(key: &str, name: &str, value: &str) -> Result<String, ConfigFault> {
    let value = match value.strip_prefix("env:") {
        None => value.to_owned(),
        Some(variable) => variable_of(key, variable)?,
    };
    // The value may be a secret: what is wrong with it is told, not what it is.
    let sound = ureq::http::HeaderName::try_from(name).is_ok()
        && ureq::http::HeaderValue::try_from(&value).is_ok();
    if !sound {
        return Err(ConfigFault::new(key, "not a header")
            .expected("a name of letters and dashes, and a value on one line"));
    }
    Ok(value)
}

/// The value of an environment variable that must be set.
pub(crate) fn variable_of(key: &str, variable: &str) -> Result<String, ConfigFault> {
    match env::var(variable) {
        Ok(value) if !value.is_empty() => Ok(value),
        _ => {
            Err(ConfigFault::new(key, format!("the environment variable `{variable}` is not set"))
                .hint(format!("export {variable}=…")))
        }
    }
}

/// A span of time in seconds, of at least `least` and at most a day.
pub(crate) fn seconds(key: &str, value: f64, least: f64) -> Result<Duration, ConfigFault> {
    const DAY: f64 = 86_400.0;
    if (least..=DAY).contains(&value) {
        return Ok(Duration::from_secs_f64(value));
    }
    Err(ConfigFault::new(key, "no such span of time")
        .found(value)
        .expected(format!("{least} to {DAY} seconds")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_called_only_if_they_can_be_and_hold_no_secret() {
        for bad in ["", "localhost:8000", "ftp://host/x", "http://", "http://user:key@host/"] {
            let fault = address("url", bad).expect_err("refused");
            assert_eq!(fault.key, "url", "{bad}");
            assert!(!fault.to_string().contains("user:key"), "{fault}");
        }
        let uri = address("url", "https://host:8443/judge?key=secret").expect("an address");
        assert_eq!(shown(&uri), "https://host:8443/judge");
        for (url, own) in [
            ("http://localhost:1/", true),
            ("http://127.0.0.1:1/", true),
            ("http://[::1]:1/", true),
            ("http://example.org/", false),
        ] {
            assert_eq!(own_machine(&address("url", url).expect("an address")), own, "{url}");
        }
    }

    #[test]
    fn a_header_takes_a_variable_and_a_fault_tells_no_secret() {
        assert_eq!(header("headers.x", "x", "plain").expect("sound"), "plain");
        let path = header("headers.x", "x", "env:PATH").expect("PATH is set");
        assert_eq!(path, env::var("PATH").expect("PATH is set"));
        let fault = header("headers.x", "x", "env:TALLOW_NO_SUCH_VARIABLE").expect_err("unset");
        assert!(fault.problem.contains("TALLOW_NO_SUCH_VARIABLE"), "{fault}");
        let fault = header("headers.x", "x", "secret\nline").expect_err("two lines");
        assert!(!fault.to_string().contains("secret"), "{fault}");
    }

    #[test]
    fn spans_of_time_are_bounded() {
        assert!(seconds("timeout_s", 0.3, 0.001).is_ok());
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e6] {
            assert!(seconds("timeout_s", bad, 0.001).is_err(), "{bad}");
        }
    }
}
