from cubelet.testing.memory import *  # noqa: F403
