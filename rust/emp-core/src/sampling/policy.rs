//! Policies of tail sampling: what keeps a trace, and with which threshold.
//!
//! They are tried in their order and the first that matches gives the reason. The threshold is the lowest of all that match: a trace with
//! an error that a probability would have kept too was certain to be kept, and stands for one.

use serde::Deserialize;

use super::attribute::{Leaf, LeafConfig};
use super::rate::Bucket;
use super::threshold::Threshold;
use crate::error::{CoreError, ErrorKind};

/// Policies within policies.
const MAX_DEPTH: usize = 8;
/// Policies in all, those within others included.
const MAX_POLICIES: usize = 256;
/// Attribute policies: a trace remembers which of them matched in the bits of a u32.
const MAX_LEAVES: usize = 32;

/// A policy as the configuration says it.
#[derive(Clone, Debug, Deserialize)]
pub struct PolicyConfig {
    /// What decisions are counted under.
    #[serde(default)]
    pub name: String,
    /// What it looks at.
    #[serde(flatten)]
    pub rule: RuleConfig,
}

/// What a policy looks at.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are those of the settings, described there")]
pub enum RuleConfig {
    Always,
    Error,
    Slow { min_duration_ns: u64, max_duration_ns: Option<u64> },
    Attribute(LeafConfig),
    Probability { percent: f64 },
    RateLimit { spans_per_s: Option<f64>, traces_per_s: Option<f64> },
    And { policies: Vec<PolicyConfig> },
    Or { policies: Vec<PolicyConfig> },
    Not { policy: Box<PolicyConfig> },
}

#[derive(Clone, Debug)]
enum Rule {
    Always,
    Error,
    Slow { min_ns: u64, max_ns: u64 },
    Attribute { bit: u32 },
    Probability(Threshold),
    Rate { bucket: usize, per_span: bool },
    And(Vec<Rule>),
    Or(Vec<Rule>),
    Not(Box<Rule>),
}

/// What is known of a trace when it is decided.
#[derive(Clone, Copy, Debug)]
pub struct TraceFacts {
    /// A span's status is an error.
    pub is_error: bool,
    /// From the earliest start to the latest end.
    pub duration_ns: u64,
    /// Which attribute policies a span matched.
    pub matched: u32,
    /// So far.
    pub spans: u32,
    /// R.
    pub randomness: u64,
}

/// Why a trace is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The policy, by its place.
    pub policy: usize,
    /// What its spans shall say; None where the chance was none that a threshold can tell (a rate limit, a negation of chance).
    pub threshold: Option<Threshold>,
}

/// Compiled policies, with the state that rate limits have.
#[derive(Clone, Debug)]
pub struct Policies {
    rules: Vec<Rule>,
    names: Vec<String>,
    leaves: Vec<Leaf>,
    buckets: Vec<Bucket>,
}

fn invalid(detail: String) -> CoreError {
    CoreError::new(ErrorKind::ConfigInvalid, 0, detail)
}

impl Policies {
    /// Compiles policies. Errors of kind `config_invalid` name the policy.
    pub fn new(configs: &[PolicyConfig]) -> Result<Self, CoreError> {
        let mut policies = Self { rules: Vec::new(), names: Vec::new(), leaves: Vec::new(), buckets: Vec::new() };
        let mut budget = MAX_POLICIES;
        for config in configs {
            let rule = policies
                .compile(&config.rule, MAX_DEPTH, &mut budget)
                .map_err(|error| invalid(format!("policy {:?}: {}", config.name, error.detail)))?;
            if config.name.is_empty() || policies.names.contains(&config.name) {
                return Err(invalid(format!("every policy needs a name of its own, not {:?} twice", config.name)));
            }
            policies.rules.push(rule);
            policies.names.push(config.name.clone());
        }
        Ok(policies)
    }

    fn compile(&mut self, config: &RuleConfig, depth: usize, budget: &mut usize) -> Result<Rule, CoreError> {
        if depth == 0 {
            return Err(invalid(format!("policies are nested over {MAX_DEPTH} deep")));
        }
        *budget = budget.checked_sub(1).ok_or_else(|| invalid(format!("there are over {MAX_POLICIES} policies")))?;
        let mut all = |policies: &mut Self, configs: &[PolicyConfig]| {
            if configs.is_empty() {
                return Err(invalid("it needs at least one policy".to_owned()));
            }
            configs.iter().map(|config| policies.compile(&config.rule, depth - 1, budget)).collect::<Result<Vec<_>, _>>()
        };
        Ok(match config {
            RuleConfig::Always => Rule::Always,
            RuleConfig::Error => Rule::Error,
            RuleConfig::Slow { min_duration_ns, max_duration_ns } => {
                Rule::Slow { min_ns: *min_duration_ns, max_ns: max_duration_ns.unwrap_or(u64::MAX) }
            }
            RuleConfig::Attribute(leaf) => {
                if self.leaves.len() == MAX_LEAVES {
                    return Err(invalid(format!("there are over {MAX_LEAVES} attribute policies")));
                }
                self.leaves.push(Leaf::new(leaf)?);
                Rule::Attribute { bit: 1 << (self.leaves.len() - 1) }
            }
            RuleConfig::Probability { percent } => Rule::Probability(Threshold::of_percent(*percent)?),
            RuleConfig::RateLimit { spans_per_s, traces_per_s } => {
                let (per_s, per_span) = match (spans_per_s, traces_per_s) {
                    (Some(spans), None) => (*spans, true),
                    (None, Some(traces)) => (*traces, false),
                    _ => return Err(invalid("a rate limit needs either spans_per_s or traces_per_s".to_owned())),
                };
                self.buckets.push(Bucket::new(per_s)?);
                Rule::Rate { bucket: self.buckets.len() - 1, per_span }
            }
            RuleConfig::And { policies } => Rule::And(all(self, policies)?),
            RuleConfig::Or { policies } => Rule::Or(all(self, policies)?),
            RuleConfig::Not { policy } => Rule::Not(Box::new(self.compile(&policy.rule, depth - 1, budget)?)),
        })
    }

    /// The names, by place.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The attribute policies; bit i of [`TraceFacts::matched`] is that of leaf i.
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// Why a trace is kept; None: it is not. `time_ns` only grows.
    pub fn decide(&mut self, facts: &TraceFacts, time_ns: i64) -> Option<Kept> {
        let Self { rules, buckets, .. } = self;
        let mut found: Option<Kept> = None;
        for (policy, rule) in rules.iter().enumerate() {
            // Behind the reason only what costs nothing is asked: a trace takes from one rate limit at most.
            let mut rates = if found.is_none() { Some((&mut buckets[..], time_ns)) } else { None };
            let Some(threshold) = rule.matches(facts, &mut rates) else { continue };
            found = Some(match found {
                None => Kept { policy, threshold },
                Some(kept) => Kept { threshold: lower(kept.threshold, threshold), ..kept },
            });
        }
        found
    }
}

/// The lower of two thresholds; one that cannot be told counts only where both are.
fn lower(a: Option<Threshold>, b: Option<Threshold>) -> Option<Threshold> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (known, None) | (None, known) => known,
    }
}

/// What rate limits take from, and when; None: they do not match.
type Rates<'a> = Option<(&'a mut [Bucket], i64)>;

impl Rule {
    /// Whether it matches: then the threshold, None inside where no threshold can tell the chance.
    fn matches(&self, facts: &TraceFacts, rates: &mut Rates<'_>) -> Option<Option<Threshold>> {
        const CERTAIN: Option<Threshold> = Some(Threshold::ALWAYS);
        match self {
            Self::Always => Some(CERTAIN),
            Self::Error => facts.is_error.then_some(CERTAIN),
            Self::Slow { min_ns, max_ns } => (*min_ns..=*max_ns).contains(&facts.duration_ns).then_some(CERTAIN),
            Self::Attribute { bit } => (facts.matched & bit != 0).then_some(CERTAIN),
            Self::Probability(threshold) => threshold.keeps(facts.randomness).then_some(Some(*threshold)),
            Self::Rate { bucket, per_span } => {
                let (buckets, time_ns) = rates.as_mut()?;
                let cost = if *per_span { f64::from(facts.spans.max(1)) } else { 1.0 };
                buckets[*bucket].take(cost, *time_ns).then_some(None)
            }
            Self::And(rules) => {
                // Rate limits last: what another part refuses must not take from them.
                let (limits, others): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| rule.has_rate());
                let mut threshold = CERTAIN;
                for rule in others.into_iter().chain(limits) {
                    let part = rule.matches(facts, rates)?;
                    threshold = threshold.zip(part).map(|(a, b)| a.max(b));
                }
                Some(threshold)
            }
            Self::Or(rules) => rules.iter().find_map(|rule| rule.matches(facts, rates)),
            Self::Not(rule) => match rule.matches(facts, rates) {
                Some(_) => None,
                None => Some(if rule.is_certain() { CERTAIN } else { None }),
            },
        }
    }

    fn parts(&self) -> &[Self] {
        match self {
            Self::And(rules) | Self::Or(rules) => rules,
            Self::Not(rule) => std::slice::from_ref(rule),
            _ => &[],
        }
    }

    fn has_rate(&self) -> bool {
        matches!(self, Self::Rate { .. }) || self.parts().iter().any(Self::has_rate)
    }

    /// Whether it depends on the trace alone, not on chance or time.
    fn is_certain(&self) -> bool {
        !matches!(self, Self::Rate { .. } | Self::Probability(_)) && self.parts().iter().all(Self::is_certain)
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
