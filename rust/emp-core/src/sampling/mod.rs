//! Sampling: consistent probability ([`threshold`], [`tracestate`], [`span`]), before the log ([`head`]) and after it, where whole
//! traces are decided ([`tail`], by [`policy`]). `docs/decisions/005-tail-sampling.md` says why it is as it is.

pub mod attribute;
mod blocks;
pub mod head;
mod output;
pub mod policy;
pub mod rate;
pub mod settings;
pub mod span;
pub mod state;
pub mod tail;
pub mod threshold;
pub mod tick;
pub mod traces;
pub mod tracestate;
pub(crate) mod walk;
