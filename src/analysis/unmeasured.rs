//! Collects what could not be measured, so that a missing number always comes with its reason.

use std::collections::BTreeMap;

use super::record::{Section, Unmeasured};

/// Names that are listed for each reason.
const NAMED: usize = 8;

/// Subjects by section and reason; none for the whole model.
#[derive(Debug, Default)]
pub(super) struct Gaps(BTreeMap<(Section, String), Vec<String>>);

impl Gaps {
    /// A section is missing for one group or tensor.
    pub(super) fn add(&mut self, section: Section, reason: &str, subject: &str) {
        self.0.entry((section, reason.to_string())).or_default().push(subject.to_string());
    }

    /// A section is missing altogether.
    pub(super) fn whole(&mut self, section: Section, reason: &str) {
        self.0.entry((section, reason.to_string())).or_default();
    }

    /// The list for the record, by section.
    pub(super) fn into_list(self) -> Vec<Unmeasured> {
        let one = |((section, reason), mut subjects): ((Section, String), Vec<String>)| {
            let count = subjects.len() as u32;
            subjects.truncate(NAMED);
            Unmeasured { section, reason, subjects, count }
        };
        self.0.into_iter().map(one).collect()
    }
}
