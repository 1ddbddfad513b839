"""Pictures and pages out of what a run leaves. matplotlib (the extra ``plots``) is imported when something is drawn."""
