"""What programs are made for and from: nothing here knows of curvature or posteriors."""
