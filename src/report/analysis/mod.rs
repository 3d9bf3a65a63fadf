//! The page of an analysis: which tables and pictures show its numbers, and what follows from them in words. It measures nothing.
//!
//! A section without numbers is not shown as an empty frame: it says why they are missing, or is left out where the model has no such thing.

mod common;
mod details;
mod experts;
mod facts;
mod findings;
mod gates;
mod inputs;
mod layers;
mod outputs;
mod steps;
mod weights;

use super::page::{Block, Page, Section};
use crate::analysis::Analysis;
use crate::analysis::record::Section as Part;

/// Builds the page of an analysis.
pub fn page(analysis: &Analysis) -> Page {
    let sections = vec![
        (outputs::errors(analysis), vec![Part::Output]),
        (outputs::types(analysis), vec![]),
        (inputs::importance(analysis), vec![Part::Importance]),
        (steps::section(analysis), vec![Part::Steps]),
        (inputs::scales(analysis), vec![Part::Alpha]),
        (weights::rounding(analysis), vec![Part::Rounding]),
        (weights::split(analysis), vec![Part::Split]),
        (gates::section(analysis), vec![Part::Gates]),
        (layers::section(analysis), vec![Part::Similarity]),
        (experts::section(analysis), vec![Part::Experts]),
        (details::section(analysis), vec![]),
    ];
    let sections: Vec<Section> =
        sections.into_iter().filter_map(|(section, parts)| with_gaps(section, analysis, &parts)).collect();
    let mut findings = findings::all(analysis);
    let known = |id: &str| sections.iter().any(|section| section.id == id);
    findings.iter_mut().filter(|finding| !known(&finding.section)).for_each(|finding| finding.section.clear());
    Page {
        title: facts::title(analysis),
        lead: facts::lead(analysis),
        facts: facts::facts(analysis),
        findings,
        sections,
    }
}

/// Adds why parts of a section are missing; a section with neither numbers nor reasons is left out.
fn with_gaps(mut section: Section, analysis: &Analysis, parts: &[Part]) -> Option<Section> {
    let gaps = analysis.unmeasured.iter().filter(|gap| parts.contains(&gap.section));
    section.gaps = gaps.map(gap_text).collect();
    let shows = |block: &Block| match block {
        Block::Figures(figures) => figures.iter().any(|figure| !figure.is_empty()),
        Block::Table(table) => !table.rows.is_empty() && table.on_page > 0,
        Block::Choice(choice) => !choice.panels.is_empty(),
    };
    let has_numbers = section.blocks.iter().any(shows);
    if !has_numbers {
        section.follows.clear();
        section.words.truncate(1);
        section.blocks.clear();
    }
    (has_numbers || !section.gaps.is_empty()).then_some(section)
}

fn gap_text(gap: &crate::analysis::record::Unmeasured) -> String {
    let reason = common::sentence(&gap.reason);
    if gap.subjects.is_empty() {
        return reason;
    }
    let more = (gap.count as usize).saturating_sub(gap.subjects.len());
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{reason} This concerns {}{rest}.", gap.subjects.join(", "))
}
