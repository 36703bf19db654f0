"""Power cuts: every disk that a cut may leave behind is opened by the real store, and must hold what was promised."""
