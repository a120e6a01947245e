//! How a tail sampler is set, and what it counts.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::policy::PolicyConfig;
use crate::error::{CoreError, ErrorKind};

/// How a tail sampler decides.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TailSettings {
    /// Tried in their order.
    pub policies: Vec<PolicyConfig>,
    /// From the first span of a trace to its decision.
    pub decision_wait_ns: i64,
    /// A trace that an error keeps is decided at once.
    pub decide_on_error: bool,
    /// A trace is decided so long after its root came; None: that changes nothing.
    pub decide_after_root_ns: Option<i64>,
    /// With so many spans a trace is decided.
    pub max_trace_spans: u32,
    /// How long late spans find the decision.
    pub late_ns: i64,
    /// Payload of blocks that wait for a decision; over it the oldest traces are decided.
    pub max_held_bytes: usize,
    /// Summaries of open traces and their links to blocks; likewise.
    pub max_open_bytes: usize,
    /// Decisions that are remembered for late spans; over it the least used are forgotten.
    pub max_decided_bytes: usize,
    /// The RED metrics of what comes in are made by this process, whatever its blocks say.
    pub red_done: bool,
}

impl TailSettings {
    /// Reads the JSON that Python's settings become.
    pub fn parse(json: &str) -> Result<Self, CoreError> {
        serde_json::from_str(json)
            .map_err(|error| CoreError::new(ErrorKind::ConfigInvalid, 0, format!("tail sampling cannot be set so: {error}")))
    }
}

/// Why a trace was decided when it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the settings of these names say it")]
pub enum Why {
    Wait,
    Root,
    Error,
    Spans,
    Memory,
}

impl Why {
    /// The name that it is counted under.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wait => "decision_wait",
            Self::Root => "root",
            Self::Error => "error",
            Self::Spans => "max_trace_spans",
            Self::Memory => "memory",
        }
    }
}

/// What a sampler counts; all of it only grows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Traces and their spans so far, by the policy that kept them; the last: dropped.
    pub by_policy: Vec<(u64, u64)>,
    /// Traces by what made them be decided when they were.
    pub by_why: BTreeMap<Why, u64>,
    /// Spans that came after their trace's decision, kept and dropped.
    pub late: (u64, u64),
    /// Spans without a trace id: they are passed on.
    pub without_trace_id: u64,
    /// Spans whose tracestate is malformed or full, and was left as it is.
    pub malformed_tracestate: u64,
}
