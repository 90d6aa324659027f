"""What the elastic model is compared with: one model per width, the bars of outlier migration, plain baselines.

Functions of a study; each adds its figures to the study's results. They choose no settings.
"""

import copy
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.study_evaluation import BATCH, OutlierTokensStay, loss_under, run_three_at_four
from mobiquant_core.baselines.gptq import gptq_model
from mobiquant_core.baselines.rtn import apply_to_projections, rtn_quantize
from mobiquant_core.calibrate.blockwise import block_state
from mobiquant_core.calibrate.full import prepare_student
from mobiquant_core.calibrate.student import Student
from mobiquant_core.calibrate.student_policies import depth_losses, reference_loss
from mobiquant_core.config import MobiQuantConfig

if TYPE_CHECKING:
    from benchmarks.calibration_study import Study


def bit_specific(study: "Study", overrides: dict, steps: int) -> None:
    """The same calibration for one width alone, and the bars of the outlier-migration experiment."""
    test, rows = study.tests["wikitext2"], {}
    states: dict[int, list[dict[str, Tensor]]] = {}
    for bits in study.arguments.bars or (2, 3, 4):
        student = study.fit(f"bit-specific {bits}", MobiQuantConfig(slice_bits=(bits,)), overrides, steps)
        states[bits] = [
            {key: value.detach().clone() for key, value in block_state(student, layer).items()}
            for layer in range(len(student.backbone.layers))
        ]
        student.run.compute = torch.float32
        student.freeze()
        reference = reference_loss(student, test, BATCH)
        rows[bits] = math.exp(depth_losses(student, test, (1,), BATCH)[0] - reference)
        student.restore()
        study.results["bit_specific_ratio"] = rows
        study.save()
    study.note(f"bit-specific ratios {rows}")
    if 3 in states and 4 in states:
        study.results["bars"] = outlier_migration(study, overrides, states[3], rows[4])
        study.note(f"bars {study.results['bars']}")
    study.save()


def outlier_migration(
    study: "Study", overrides: dict, state: list[dict[str, Tensor]], at_four: float
) -> dict[str, float]:
    """Calibrated at 3 run at 4; the same with 10 % outlier tokens at 3; calibrated and run at 4."""
    test = study.tests["wikitext2"]
    settings = study.settings({key: value for key, value in overrides.items() if key != "rounding_rate"}, 1)
    student = prepare_student(study.model, MobiQuantConfig((3, 1)), study.calibration, settings)
    study.students.append(student)
    student.run.compute = torch.float32
    for linear in student.linears:
        run_three_at_four(linear, state[linear.site.layer])
    reference = reference_loss(student, test, BATCH)
    coarse, fine = depth_losses(student, test, (1, 2), BATCH)
    kept = loss_under(student, OutlierTokensStay(0.1), test, BATCH)
    student.restore()
    bars = {"calibrated 3, run 3": coarse, "calibrated 3, run 4": fine, "calibrated 3, outliers at 3": kept}
    return {key: math.exp(loss - reference) for key, loss in bars.items()} | {"calibrated 4, run 4": at_four}


def plain_baselines(study: "Study") -> None:
    """Round to nearest and GPTQ at 2, 3 and 4 bits."""
    test, rows = study.tests["wikitext2"], []
    plain = Student(study.model, MobiQuantConfig())
    reference = reference_loss(plain, test, BATCH)
    plain.restore()
    for bits in (2, 3, 4):
        for method in ("rtn", "gptq"):
            model = copy.deepcopy(study.model)
            if method == "rtn":
                apply_to_projections(model, lambda weight, bits=bits: rtn_quantize(weight, bits))
            else:
                gptq_model(model, study.calibration[: 4 if study.arguments.smoke else 128], bits)
            student = Student(model, MobiQuantConfig())
            ratio = math.exp(reference_loss(student, test, BATCH) - reference)
            rows.append({"method": method, "bits": bits, "ratio": ratio})
    study.results["plain_baselines"] = rows
    study.note("  ".join(f"{row['method']} {row['bits']}: {row['ratio']:.4f}" for row in rows))
    study.save()
