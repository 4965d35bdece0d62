from cubelet.testing.subject import *  # noqa: F403
