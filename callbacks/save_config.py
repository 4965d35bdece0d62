"""The composed configuration, written into the run's folder."""

import warnings
from typing import Any

from lightning.pytorch.cli import SaveConfigCallback

from cubelet.common.files import write_atomic
from cubelet.common.run_folder import run_folder

# Options that belong to one start of a run: the configuration repeats the run, not the way it was last resumed.
OF_ONE_START = {"ckpt_path": None, "init_from": None, "override": [], "run_name": None}
NO_COMPONENT = "Unable to serialize instance None"


class SaveRunConfig(SaveConfigCallback):
    """Writes `config.yaml` into the folder of a fit's run; a resumed run replaces it. Made by the command line."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self.already_saved or stage != "fit":
            return
        folder = run_folder(trainer)  # collective
        if folder is not None and trainer.is_global_zero:
            config = self.config.clone()
            for name, nothing in OF_ONE_START.items():
                if name in config:
                    config[name] = nothing
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", rf"\s*{NO_COMPONENT}")
                text = self.parser.dump(config, skip_none=False)
            # What jsonargparse 4.53 writes for null in a list of components, such as a layer without a rotary.
            write_atomic(folder / self.config_filename, text.replace(NO_COMPONENT, "null"))
        self.already_saved = True
