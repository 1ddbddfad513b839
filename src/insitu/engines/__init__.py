"""Floor 3: where the work happens. Every engine gives the answer that ``inline`` gives."""
