//! Many conversions unattended: a batch file becomes jobs, each a process of its own, known by the content of what goes into it. It converts
//! nothing itself; the commands of this program do.

pub mod child;
pub mod command;
pub mod events;
pub mod expand;
pub mod gates;
pub mod hub;
pub mod job;
pub mod key;
pub mod metrics;
pub mod places;
pub mod plan;
pub mod report;
pub mod runner;
pub mod spec;
pub mod state;
