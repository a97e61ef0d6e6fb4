"""Files, connections and their threads, locks and forks."""
