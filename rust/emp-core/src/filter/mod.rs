//! Rows left out by rule: [`Filter`] drops them or keeps one in so many, [`RateLimiter`] keeps so many a second of each source.
//!
//! The first rule that matches a row decides; what no rule matches is kept. What is left out is counted by rule.

mod condition;
mod rate;

use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

use crate::batch::{Batch, Signal};
use crate::error::{CoreError, ErrorKind};
use condition::{Condition, ConditionConfig};
pub use rate::RateLimiter;

/// One rule as the configuration says it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleConfig {
    name: String,
    #[serde(rename = "where")]
    condition: ConditionConfig,
    /// 0: none is kept; 1: all are.
    keep_one_in: u64,
}

struct Rule {
    condition: Condition,
    keep_one_in: u64,
}

/// What is left of a batch.
#[derive(Debug)]
pub struct Filtered {
    /// None: nothing; or the very batch, where nothing was left out.
    pub batch: Option<Batch>,
    /// Nothing was left out.
    pub unchanged: bool,
    /// Records that were left out, by rule.
    pub dropped: Vec<u64>,
}

impl Filtered {
    /// The rows that `keep` names; `dropped` is by rule.
    fn of(batch: &Batch, keep: &[bool], dropped: Vec<u64>) -> Self {
        if keep.iter().all(|keep| *keep) {
            return Self { batch: None, unchanged: true, dropped };
        }
        let left = batch.filter(|row| keep[row]);
        Self { batch: (!left.is_empty()).then_some(left), unchanged: false, dropped }
    }
}

/// What the books count of a row.
fn records(batch: &Batch, row: usize) -> u64 {
    if batch.signal == Signal::Metrics { u64::from(batch.columns.points[row]) } else { 1 }
}

fn named<T: for<'a> Deserialize<'a>>(json: &str, what: &str) -> Result<Vec<T>, CoreError> {
    serde_json::from_str(json).map_err(|error| CoreError::new(ErrorKind::ConfigInvalid, 0, format!("{what} cannot be set so: {error}")))
}

/// Says in an error which rule it is about.
fn of_rule(name: &str) -> impl Fn(CoreError) -> CoreError + '_ {
    move |error| CoreError::new(error.kind, 0, format!("rule {name}: {}", error.detail))
}

/// Compiled rules, and how many rows each has seen.
pub struct Filter {
    names: Vec<String>,
    rules: Vec<Rule>,
    seen: Mutex<Vec<u64>>,
}

impl Filter {
    /// Compiles rules from the JSON that Python's settings become. Errors are of kind `config_invalid`.
    pub fn parse(json: &str) -> Result<Self, CoreError> {
        let configs: Vec<RuleConfig> = named(json, "filters")?;
        let mut out = Self { names: Vec::new(), rules: Vec::new(), seen: Mutex::new(vec![0; configs.len()]) };
        for config in configs {
            let condition = Condition::new(config.condition).map_err(of_rule(&config.name))?;
            out.rules.push(Rule { condition, keep_one_in: config.keep_one_in });
            out.names.push(config.name);
        }
        Ok(out)
    }

    /// The rules' names, in their order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What is left of a batch. Of those of which one in N is kept it is the first that a rule sees, the N+1st, and so on.
    pub fn apply(&self, batch: &Batch) -> Result<Filtered, CoreError> {
        let mut keep = vec![true; batch.len()];
        let mut decided = vec![false; batch.len()];
        let mut dropped = vec![0; self.rules.len()];
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, rule) in self.rules.iter().enumerate() {
            let matching = rule.condition.rows(batch)?;
            for row in (0..batch.len()).filter(|&row| matching[row]) {
                if std::mem::replace(&mut decided[row], true) {
                    continue;
                }
                keep[row] = rule.keep_one_in > 0 && seen[number].is_multiple_of(rule.keep_one_in);
                seen[number] = seen[number].wrapping_add(1);
                if !keep[row] {
                    dropped[number] += records(batch, row);
                }
            }
        }
        Ok(Filtered::of(batch, &keep, dropped))
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
