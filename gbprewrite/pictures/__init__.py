"""Maps as pictures: panels, pages, contact sheets, reports."""
