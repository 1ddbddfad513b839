"""What the coordinator answers, by path: handlers from requests to answers, without a socket."""
