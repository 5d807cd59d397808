"use strict";

SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  // The default asks a site on the internet whether the document is valid.
  validatorUrl: null,
});
