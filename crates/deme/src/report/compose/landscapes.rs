//! The objective over planes of two task vectors.

use super::super::document::{Block, CaptionedFigure, Section};
use super::super::landscape_map::{Landmark, best_point, landmarks, landscape_map};
use super::super::number_format::{significant, weights};
use super::super::verdict::merged_row;
use super::super::{LandscapePlane, Report};

/// A map per plane.
pub(super) fn landscapes(report: &Report) -> Section {
    let mut blocks = Vec::new();
    let mut drawn = Vec::new();
    for (place, plane) in report.landscapes.iter().enumerate() {
        let [i, j] = plane.landscape.experts.map(|expert| expert + 1);
        let landmarks = landmarks(plane, merged_row(&report.rows));
        let name = format!("landscape-{}-experts-{i}-{j}", place + 1);
        match landscape_map(name, plane, &landmarks) {
            Some(figure) => {
                drawn.push(CaptionedFigure { figure, caption: caption(plane, &landmarks) })
            }
            None => blocks.push(Block::Paragraph(format!(
                "The landscape over experts {i} and {j} has less than two weights in a direction \
                 and is not drawn."
            ))),
        }
    }
    if !drawn.is_empty() {
        blocks.push(Block::Paragraph(
            "What two experts' weights do, all others being held: (0, 0) is the pretrained model, \
             (1, 0) and (0, 1) are the experts alone, unless a caption says otherwise. The stronger \
             colour is the better value; distances between shades grow as squares, so that a \
             quadratic basin shows evenly spaced rings, and the worst tenth has one shade."
                .to_string(),
        ));
        blocks.push(Block::Figures(drawn));
        blocks.push(Block::Remark(
            "Measured at the small dots; between four of them values are interpolated.".to_string(),
        ));
    }
    Section { id: "landscapes", heading: "Landscape of the weights", blocks }
}

fn caption(plane: &LandscapePlane, landmarks: &[Landmark]) -> String {
    let mut text = format!(
        "{} ({} is better) on {}.",
        plane.objective,
        if plane.lower_is_better { "lower" } else { "higher" },
        plane.scored_on
    );
    if let Some(((a, b), value)) = best_point(plane) {
        text.push_str(&format!(
            " The best measured point is ({}) with {}.",
            weights(&[a, b]),
            significant(value, 4)
        ));
    }
    let valued: Vec<String> = landmarks
        .iter()
        .filter_map(|l| Some(format!("{} {}", l.label, significant(l.value?, 4))))
        .collect();
    if !valued.is_empty() {
        text.push_str(&format!(" Values: {}.", valued.join(", ")));
    }
    if !landmarks.iter().any(|landmark| landmark.label == "pretrained") {
        let others: Vec<String> = (0..plane.others.as_ref().map_or(0, Vec::len))
            .filter_map(|expert| {
                let weight = plane.fixed_weight(expert)?;
                Some(format!("{} for expert {}", weights(&[weight]), expert + 1))
            })
            .collect();
        text.push_str(&format!(
            " The other weights are {}, so neither the pretrained model nor a single expert lies in \
             this plane.",
            others.join(", ")
        ));
    }
    for landmark in landmarks {
        if landmark.off_plane {
            text.push_str(&format!(
                " * The merged model has ({}) here but other weights of the other experts too: it \
                 lies outside of the plane, and the colour at its mark is not its value.",
                weights(&[landmark.at.0, landmark.at.1])
            ));
        }
        if !landmark.is_on(&plane.landscape) {
            text.push_str(&format!(
                " Beyond the map: {} at ({}).",
                landmark.label,
                weights(&[landmark.at.0, landmark.at.1])
            ));
        }
    }
    text
}
