//! A scorer behind an HTTP address.
//!
//! The siblings of a group are one POST of the JSON that `exchange.rs` shows, to any server that answers
//! with its results. `endpoint.rs` says what is tried again and what bounds a call. A server that fails, or
//! answers something else, leaves its group unscorable: dropped and counted, with an error that names the
//! address. Nothing that a server does makes a reward of 0, but a result that says so.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Serialize};

use crate::{
    config_fault::ConfigFault,
    endpoint::{Endpoint, Failure, Settings},
    error::VerifyError,
    exchange,
    registry::{ContractCase, VerifierConfig, Verifiers},
    transcript::Transcript,
    verifier::{Preparation, Reference, ReferenceKind, Verdict, Verifier},
};

/// Options of the `http` verifier.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Where groups are posted.
    pub url: String,
    /// Headers of each request; a value `env:NAME` is that of the environment variable, so that no
    /// secret stands in a configuration.
    pub headers: BTreeMap<String, String>,
    /// Seconds that a request may take, to the last byte of its answer.
    pub timeout_s: f64,
    /// Further requests after one that failed in a way that may pass.
    pub retries: u32,
    /// Seconds before the second request; each later pause is twice as long, up to a minute.
    pub backoff_s: f64,
    /// Requests in flight at a time.
    pub concurrency: u32,
    /// Bytes that an answer may have.
    pub max_reply_bytes: u64,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            headers: BTreeMap::new(),
            timeout_s: 60.0,
            retries: 3,
            backoff_s: 0.5,
            concurrency: 8,
            max_reply_bytes: 4 << 20,
        }
    }
}

impl VerifierConfig for HttpConfig {
    const NAME: &'static str = "http";
    const SUMMARY: &'static str = "a scorer behind an HTTP address";
    const NEEDS: Option<&'static str> = Some("a server");

    fn build(&self, _verifiers: &Verifiers) -> Result<Arc<dyn Verifier>, ConfigFault> {
        let endpoint = Endpoint::new(&Settings {
            key: "url",
            url: &self.url,
            headers: &self.headers,
            timeout_s: self.timeout_s,
            retries: self.retries,
            backoff_s: self.backoff_s,
            concurrency: self.concurrency,
            max_reply_bytes: self.max_reply_bytes,
        })?;
        Ok(Arc::new(Http { endpoint, asked: AtomicU64::new(0) }))
    }

    fn cases() -> Vec<ContractCase> {
        Vec::new()
    }
}

struct Http {
    endpoint: Endpoint,
    /// Groups so far, which numbers the requests.
    asked: AtomicU64,
}

impl Http {
    fn ask(
        &self,
        id: u64,
        transcripts: &[Transcript],
        reference: &Reference,
    ) -> Result<Vec<exchange::Result>, VerifyError> {
        let request = exchange::request(id, transcripts, reference);
        self.endpoint
            .ask(
                |_| Cow::Borrowed(request.as_slice()),
                |answer| {
                    exchange::response(answer, id, transcripts.len()).map_err(Failure::lasting)
                },
            )
            .map_err(|problem| self.broken(problem))
    }

    fn broken(&self, problem: String) -> VerifyError {
        VerifyError::Broken { verifier: HttpConfig::NAME.to_owned(), problem }
    }
}

impl Verifier for Http {
    fn name(&self) -> &str {
        HttpConfig::NAME
    }

    fn reference_kinds(&self) -> &'static [ReferenceKind] {
        ReferenceKind::ALL
    }

    fn waits(&self) -> bool {
        true
    }

    /// Asks about no items: is a scorer there?
    fn prepare(&self, _: &Preparation<'_>) -> Result<(), VerifyError> {
        self.ask(0, &[], &Reference::None).map(|_| ())
    }

    fn verify(
        &self,
        transcript: &Transcript,
        reference: &Reference,
    ) -> Result<Verdict, VerifyError> {
        self.verify_group(std::slice::from_ref(transcript), reference).remove(0)
    }

    fn verify_group(
        &self,
        transcripts: &[Transcript],
        reference: &Reference,
    ) -> Vec<Result<Verdict, VerifyError>> {
        if transcripts.is_empty() {
            return Vec::new();
        }
        let id = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        match self.ask(id, transcripts, reference) {
            Ok(results) => results
                .into_iter()
                .map(|result| {
                    result.map_err(|problem| {
                        self.broken(format!("{}: {problem}", self.endpoint.shown()))
                    })
                })
                .collect(),
            Err(error) => transcripts.iter().map(|_| Err(error.clone())).collect(),
        }
    }
}
